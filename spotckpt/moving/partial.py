"""Bytes that are on their way into a file, kept where a process that is killed leaves them for the next."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from spotckpt.errors import Corrupt, UsageError
from spotckpt.moving.atomic import place, require_room, translated
from spotckpt.snapshot.arrival import Arrived, Piece, Reader, Source, pieces_of
from spotckpt.snapshot.pack import TensorSpec, layout
from spotckpt.snapshot.part import Part
from spotckpt.store.base import Progress
from spotckpt.training.tensors import empty_tensor, tensor_view


class Partial:
    """Some tensors of a part, in a mapped file beside the destination, and a journal of the pieces that are there.

    The journal is a hint, never believed: every tensor's digest is made from the bytes in the file, wherever they are
    from. So it needs no sync, and what a power failure leaves of both costs a download at worst.

    Attributes:
        there: bytes that an earlier process left.
    """

    def __init__(self, directory: Path, part: Part, rows: Sequence[int]) -> None:
        self._part = part
        self._rows = list(rows)
        entries = [part.tensors[row] for row in rows]
        place = layout([TensorSpec(str(row), one.dtype, one.shape) for row, one in zip(rows, entries, strict=True)])
        self.size_bytes = place.data_bytes
        self._spans = {
            row: (offset, offset + one.size_bytes)
            for row, offset, one in zip(rows, place.offsets, entries, strict=True)
        }
        self._data, self._journal = directory / "data", directory / "journal"
        self._identity = f"{part.snapshot} {len(self._rows)} {self.size_bytes}\n".encode()
        self._log = os.open(self._journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock()
        self._have = self._known()
        self.there = sum(self._have.values())
        self._memory = self._mapped()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._log)
            name = self._journal.parent
            raise UsageError(f"{name} is in use: another pull writes the same file", hint="wait for it") from error

    def _known(self) -> dict[tuple[int, int], int]:
        """Pieces by row and first byte, with their lengths; none if the journal is of another snapshot."""
        lines = self._journal.read_bytes().splitlines(keepends=True)
        whole_file = self._data.exists() and self._data.stat().st_size == max(self.size_bytes, 1)
        if not lines or lines[0] != self._identity or not whole_file:
            self._forget()
            return {}
        found = {}
        for line in lines[1:]:
            fields = line.split()
            if line.endswith(b"\n") and len(fields) == 3 and all(field.isdigit() for field in fields):
                row, first, length = map(int, fields)
                found[row, first] = length
        return found

    def _forget(self) -> None:
        os.ftruncate(self._log, 0)
        os.write(self._log, self._identity)

    def _mapped(self) -> memoryview:
        with self._data.open("a+b") as file:
            if not self._have:
                require_room(self._data, self.size_bytes)
                # all of it now: a mapped file that runs out of disk later kills the process
                os.posix_fallocate(file.fileno(), 0, max(self.size_bytes, 1))
            os.truncate(file.fileno(), max(self.size_bytes, 1))
            return memoryview(mmap.mmap(file.fileno(), max(self.size_bytes, 1)))

    def fill(self, source: Source, progress: Progress) -> None:
        """Fetches what is missing and checks every digest, of what was there already, too.

        Raises:
            Corrupt: the source's bytes are wrong.
            StoreError: they cannot be read now; what came is kept.
        """
        try:
            self._fill(source, progress)
        except Corrupt:
            if not self._have:
                raise
            self._have = {}
            self._forget()
            self._fill(source, lambda count: None)

    def _fill(self, source: Source, progress: Progress) -> None:
        reader = Reader(self._part, _Remembered(source, self._have, self._log), progress=progress)
        reader.read([piece for row in self._rows for piece in pieces_of(self._part, row, self._of(row))])
        reader.finish()

    def _of(self, row: int) -> memoryview:
        start, end = self._spans[row]
        return self._memory[start:end]

    def tensors(self) -> Mapping[int, torch.Tensor]:
        """By row: views of the mapped file, unless they lay in memory in another way than row by row."""
        return {row: self._tensor(row) for row in self._rows}

    def _tensor(self, row: int) -> torch.Tensor:
        entry = self._part.tensors[row]
        view = tensor_view(self._of(row), entry)
        return view if entry.stride is None else empty_tensor(entry, torch.device("cpu")).copy_(view)

    def close(self) -> None:
        """Lets go of the lock."""
        os.close(self._log)


class _Remembered:
    """A source that is asked only for pieces that no earlier process brought."""

    def __init__(self, source: Source, have: Mapping[tuple[int, int], int], log: int) -> None:
        self._source = source
        self._have = have
        self._log = log

    def read(self, pieces: Sequence[Piece], arrived: Arrived) -> None:
        """See `Source.read`."""
        missing = [one for one in pieces if self._have.get((one.row, one.first)) != len(one.into)]
        for piece in pieces:
            if self._have.get((piece.row, piece.first)) == len(piece.into):
                arrived(piece)

        def came(piece: Piece) -> None:
            os.write(self._log, f"{piece.row} {piece.first} {len(piece.into)}\n".encode())  # one call: one line
            arrived(piece)

        self._source.read(missing, came)


@contextmanager
def partial(destination: Path, part: Part, rows: Sequence[int]) -> Iterator[Partial]:
    """The partial file of a destination: made or taken up; removed when nothing was raised.

    Raises:
        UsageError: another process fills it, or nothing can be made there.
    """
    destination = place(destination)
    directory = destination.parent / f".{destination.name}.spotckpt-part"
    with translated(destination):
        directory.mkdir(exist_ok=True)
        found = Partial(directory, part, rows)
    try:
        yield found
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        found.close()
