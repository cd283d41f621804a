"""Tensors that wait for their bytes: which rows of a part's table go where, and one pass that reads them all.

Checks come first and bytes later. Until `Filling.read` has ended the tensors given out here hold nothing of use.

Bytes go straight into memory that is laid out as a pack is: a dense, row-major tensor of the saved dtype on the CPU.
For all else (another device, another dtype, strides) they pass through buffers of a fixed size.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from spotckpt.errors import Corrupt, SpotckptError
from spotckpt.snapshot.arrival import Piece, Reader, Source, pieces_of
from spotckpt.snapshot.pack import ITEM_BYTES
from spotckpt.snapshot.part import Part, TensorEntry
from spotckpt.store.base import Progress
from spotckpt.training.tensors import DTYPES, bytes_of, empty_array, empty_tensor, tensor_view

BUFFER_BYTES = 64 << 20
BUFFERS = 2
"""While one is copied out of, the other is read into."""

_ALIGNED = 64

Array: TypeAlias = "np.ndarray[Any, Any]"


def lands_directly(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor's memory takes the bytes of a pack as they are."""
    row_major = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    return is_plain(tensor.device.type, tensor.dtype == dtype, row_major)


def is_plain(device: str, same_dtype: bool, row_major: bool) -> bool:
    """The same, of a tensor that need not be there."""
    return device == "cpu" and same_dtype and row_major


@dataclass
class _Row:
    """Where the bytes of one row go: into `landing`, if there is such memory, and from there to `others`."""

    landing: memoryview | None = None
    others: list[torch.Tensor | Array] = field(default_factory=list)


class Filling:
    """What is to be read of a part.

    Args:
        part: whose table the rows are of.
        buffer_bytes: the size of each of the buffers.
    """

    def __init__(self, part: Part, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._part = part
        self._buffer_bytes = buffer_bytes
        self._rows: dict[int, _Row] = {}
        self._claims: dict[torch.device, _Claims] = {}

    @property
    def num_bytes(self) -> int:
        """How many bytes will be read."""
        return sum(self._part.tensors[row].size_bytes for row in self._rows)

    @property
    def places(self) -> set[object]:
        """Where existing tensors will be written to: device, first byte and the one after the last."""
        return {(device, start, end) for device, claims in self._claims.items() for start, end in claims.places()}

    def entry(self, row: object) -> TensorEntry:
        """What a row is.

        Raises:
            Corrupt: the table has no such row.
        """
        if type(row) is not int or not 0 <= row < len(self._part.tensors):
            raise Corrupt(f"state tree: there is no tensor {row!r:.40}", hint="use another snapshot")
        return self._part.tensors[row]

    def fresh(self, row: int, device: torch.device) -> torch.Tensor:
        """A tensor of its own for the row, laid out as it was when captured.

        Raises:
            Corrupt: there is no such row, or its strides do not fit.
        """
        entry = self.entry(row)
        try:
            tensor = empty_tensor(entry, device)
        except RuntimeError as error:
            raise SpotckptError(
                f"no memory on {device} for tensor {entry.name} of {entry.size_bytes} bytes: {error}",
                hint="free some, or choose another place with map_location=",
            ) from error
        self._add(row, tensor)
        return tensor

    def array(self, row: int) -> Array:
        """An array of its own for the row, C-contiguous.

        Raises:
            Corrupt: there is no such row, or numpy has no such dtype.
        """
        array = empty_array(self.entry(row))
        found = self._rows.setdefault(row, _Row())
        if found.landing is None:
            found.landing = array.reshape(-1).view(np.uint8).data
        else:
            found.others.append(array)
        return array

    def into(self, row: int, live: torch.Tensor) -> bool:
        """Lets an existing tensor of the row's shape take its bytes.

        Returns:
            False, and nothing will be written, where the order of writing matters: a part of its memory is another
            row's too, or several of its elements are one.
        """
        assert tuple(live.shape) == self.entry(row).shape
        live = live.detach()
        if live.nbytes:
            claims = self._claims.setdefault(live.device, _Claims())
            if claims.has(live, row):
                return True
            if not claims.take(live, row):
                return False
        self._add(row, live)
        return True

    def _add(self, row: int, tensor: torch.Tensor) -> None:
        found = self._rows.setdefault(row, _Row())
        if found.landing is None and lands_directly(tensor, DTYPES[self.entry(row).dtype]):
            found.landing = bytes_of(tensor)
        else:
            found.others.append(tensor)

    def read(self, source: Source, *, progress: Progress | None = None) -> None:
        """Reads every row, checks every digest, and puts the bytes where they belong. May be done again.

        Raises:
            Corrupt: bytes are missing or wrong; what the tensors hold then is of no use.
            StoreError: they cannot be read now.
        """
        reader = Reader(self._part, source, progress=progress)
        landing = {row: found.landing for row, found in self._rows.items() if found.landing is not None}
        reader.read([piece for row, memory in landing.items() for piece in pieces_of(self._part, row, memory)])
        self._read_buffered(reader, [row for row in self._rows if row not in landing])
        reader.finish()
        for row, memory in landing.items():
            for other in self._rows[row].others:
                self._copy(memory, row, other)

    def _copy(self, memory: memoryview, row: int, other: torch.Tensor | Array) -> None:
        view = tensor_view(memory, self.entry(row))
        if isinstance(other, torch.Tensor):
            with torch.no_grad():
                other.copy_(view)
        else:
            other.reshape(-1).view(np.uint8)[:] = np.frombuffer(memory, np.uint8)

    # What does not land directly

    def _read_buffered(self, reader: Reader, rows: list[int]) -> None:
        groups = deque(self._groups(rows))
        with ThreadPoolExecutor(BUFFERS, "spotckpt-restore") as pool:
            try:
                for worker in [pool.submit(self._work, reader, groups) for _ in range(min(BUFFERS, len(groups)))]:
                    worker.result()
            finally:
                groups.clear()  # after an error the other worker ends with what it has begun

    def _groups(self, rows: list[int]) -> Iterator[list[int]]:
        """Neighbours in a pack that fill a buffer together; what is longer is alone."""

        def place(row: int) -> list[tuple[int, int]]:
            return [(chunk.pack, chunk.offset) for chunk in self._part.tensors[row].chunks]

        group: list[int] = []
        used = 0
        for row in sorted(rows, key=place):
            size = _padded(self._part.tensors[row].size_bytes)
            if group and used + size > self._buffer_bytes:
                yield group
                group, used = [], 0
            group.append(row)
            used += size
        if group:
            yield group

    def _work(self, reader: Reader, groups: deque[list[int]]) -> None:
        buffer: torch.Tensor | None = None
        while groups:
            try:
                group = groups.popleft()
            except IndexError:
                return
            if buffer is None:
                buffer = torch.empty(self._buffer_bytes, dtype=torch.uint8, pin_memory=self._is_for_cuda(group))
            for load in self._loads(group):
                self._read_load(reader, load, buffer)

    def _is_for_cuda(self, group: list[int]) -> bool:
        others = (other for row in group for other in self._rows[row].others)
        return any(isinstance(other, torch.Tensor) and other.is_cuda for other in others)

    def _loads(self, group: list[int]) -> Iterator[list[_Block]]:
        """The blocks of some rows, by what the buffer holds at a time."""
        load: list[_Block] = []
        used = 0
        for row in group:
            for block in blocks(row, self.entry(row), self._buffer_bytes):
                if used + _padded(block.size_bytes) > self._buffer_bytes:
                    yield load
                    load, used = [], 0
                load.append(block)
                used += _padded(block.size_bytes)
        if load:
            yield load

    def _read_load(self, reader: Reader, load: list[_Block], buffer: torch.Tensor) -> None:
        memory, place = bytes_of(buffer), 0
        pieces: list[Piece] = []
        views: list[tuple[_Block, torch.Tensor]] = []
        for block in load:
            into = memory[place : place + block.size_bytes]
            pieces += pieces_of(self._part, block.row, into, first=block.first)
            view = buffer[place : place + block.size_bytes].view(DTYPES[self.entry(block.row).dtype])
            views.append((block, view.view(block.shape)))
            place += _padded(block.size_bytes)
        reader.read(pieces)
        with torch.no_grad():  # of this thread
            for block, view in views:
                for other in self._rows[block.row].others:
                    assert isinstance(other, torch.Tensor), "an array lands directly"
                    other[block.index].copy_(view)


@dataclass(frozen=True)
class _Block:
    """A box of a tensor whose elements follow on one another in its row-major bytes.

    Attributes:
        row: the tensor's.
        index: what selects the box.
        first: its first byte.
        shape: of the box.
        size_bytes: of the box.
    """

    row: int
    index: tuple[int | slice, ...]
    first: int
    shape: tuple[int, ...]
    size_bytes: int


def blocks(row: int, entry: TensorEntry, most_bytes: int) -> Iterator[_Block]:
    """A tensor in boxes of at most so many bytes, in the order of its bytes."""
    item = ITEM_BYTES[entry.dtype]

    def cut(shape: tuple[int, ...], index: tuple[int | slice, ...], first: int) -> Iterator[_Block]:
        size = math.prod(shape) * item
        if size <= most_bytes:
            yield _Block(row, index, first, shape, size)
            return
        inner = size // shape[0]
        if inner > most_bytes:
            for k in range(shape[0]):
                yield from cut(shape[1:], (*index, k), first + k * inner)
            return
        step = most_bytes // inner
        for k in range(0, shape[0], step):
            some = min(step, shape[0] - k)
            yield _Block(row, (*index, slice(k, k + some)), first + k * inner, (some, *shape[1:]), some * inner)

    yield from cut(entry.shape, (), 0)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNED) * _ALIGNED


class _Claims:
    """Which memory of a device is whose."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._owners: list[object] = []

    def places(self) -> Iterator[tuple[int, int]]:
        """The memory that is taken."""
        return zip(self._starts, self._ends, strict=True)

    def has(self, tensor: torch.Tensor, row: int) -> bool:
        """Whether just this tensor's memory is this row's."""
        at = bisect(self._starts, tensor.data_ptr()) - 1
        return at >= 0 and self._starts[at] == tensor.data_ptr() and self._owners[at] == _owner(tensor, row)

    def take(self, tensor: torch.Tensor, row: int) -> bool:
        """Makes the tensor's memory this row's, unless some of it is taken, or several elements are one."""
        if any(stride == 0 and side > 1 for stride, side in zip(tensor.stride(), tensor.shape, strict=True)):
            return False
        last = sum((side - 1) * stride for stride, side in zip(tensor.stride(), tensor.shape, strict=True))
        start, end = tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize
        at = bisect(self._starts, start)
        if (at and self._ends[at - 1] > start) or (at < len(self._starts) and self._starts[at] < end):
            return False
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        self._owners.insert(at, _owner(tensor, row))
        return True


def _owner(tensor: torch.Tensor, row: int) -> object:
    return row, tuple(tensor.stride()), tensor.dtype
