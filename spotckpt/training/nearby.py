"""A snapshot that lies in this machine's spool, as a source of its tensors.

The bucket says what the snapshot is: names, shapes and digests come from there, and only bytes from here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from spotckpt.agent.slots import STAGED_NAME
from spotckpt.errors import Corrupt, SpotckptError
from spotckpt.snapshot.arrival import Arrived, Piece
from spotckpt.snapshot.part import Part
from spotckpt.snapshot.staged import Staged
from spotckpt.store.halt import Halt
from spotckpt.store.parallel import at_once

_THREADS = 4


class SlotBytes:
    """The data file of a slot. It is read, not mapped: a file that is cut short meanwhile is an error, not a signal.

    Args:
        path: the slot's directory.
        data_path: its data file.
        part: of the snapshot that it holds.

    Raises:
        SpotckptError, OSError: it holds something else.
    """

    def __init__(self, path: Path, data_path: Path, part: Part) -> None:
        described = path / STAGED_NAME
        staged = Staged.from_bytes(described.read_bytes(), key=str(described))
        here = [(entry.name, entry.dtype, entry.shape) for entry in staged.tensors]
        if staged.snapshot != part.snapshot or here != [(one.name, one.dtype, one.shape) for one in part.tensors]:
            raise Corrupt(f"{path} does not hold snapshot {part.snapshot}", hint="it is read from the bucket")
        self._path = data_path
        self._places = [entry.chunks[0].offset for entry in staged.tensors]
        data_path.stat()

    def read(self, pieces: Sequence[Piece], arrived: Arrived) -> None:
        """See `Source.read`."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise Corrupt(f"{self._path} cannot be opened: {error.strerror}") from error

        def reading(piece: Piece) -> Callable[[], None]:
            def read() -> None:
                self._fill(fd, piece)
                arrived(piece)

            return read

        try:
            at_once(map(reading, pieces), width=_THREADS, halt=Halt(), done=lambda _: None)
        finally:
            os.close(fd)

    def _fill(self, fd: int, piece: Piece) -> None:
        into, place = piece.into, self._places[piece.row] + piece.first
        while len(into):
            try:
                count = os.preadv(fd, [into], place)
            except OSError as error:
                raise Corrupt(f"{self._path} cannot be read: {error.strerror}") from error
            if not count:
                raise Corrupt(f"{self._path} ends too early")
            into, place = into[count:], place + count


def slot_bytes(path: Path, data_path: Path, part: Part) -> SlotBytes | None:
    """The same, or None if it cannot be used."""
    try:
        return SlotBytes(path, data_path, part)
    except (SpotckptError, OSError):
        return None
