"""Tensor bytes on their way into memory: read in parallel, each chunk checked against its digest as it comes.

A reader is given *pieces*: bytes of one tensor and the memory that they go to. Where the bytes come from is a `Source`:
the packs in the bucket, or a slot of this machine's spool. No byte is looked at twice, and none is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3

from spotckpt.deadline import Deadline
from spotckpt.errors import Corrupt, LimitExceeded, NotFound, Replaced
from spotckpt.snapshot.part import Chunk, Part
from spotckpt.store.base import Progress, Span, Stat, Store

SPAN_BYTES = 16 << 20
"""What is asked for, and hashed, at a time."""

ANOTHER = "use another snapshot"


@dataclass(frozen=True)
class Piece:
    """Bytes of one tensor and where they go.

    Attributes:
        row: the tensor's, in the part's table.
        first: the first byte, counted in the tensor's row-major bytes.
        chunk: of the tensor, which all bytes belong to.
        at: the first byte, counted in the chunk.
        into: writable, of the piece's length.
    """

    row: int
    first: int
    chunk: Chunk
    at: int
    into: memoryview


Arrived = Callable[[Piece], None]


class Source(Protocol):
    """Where a snapshot's tensors can be read."""

    def read(self, pieces: Sequence[Piece], arrived: Arrived) -> None:
        """Fills the pieces, in any order, and tells each that is there, on any thread. What `arrived` raises ends it.

        Raises:
            Corrupt: bytes are missing.
            StoreError: they cannot be read now.
        """


def pieces_of(part: Part, row: int, into: memoryview, *, first: int = 0) -> Iterator[Piece]:
    """The pieces that fill `into` with a tensor's row-major bytes from `first` on."""
    for chunk in part.tensors[row].chunks:
        start = _start(part, row, chunk)
        begin, end = max(first, start), min(first + len(into), start + chunk.length)
        if begin < end or (chunk.length == 0 and not len(into)):
            yield Piece(row, begin, chunk, begin - start, into[begin - first : end - first])


def _start(part: Part, row: int, chunk: Chunk) -> int:
    """Where a chunk begins in its tensor's bytes."""
    entry = part.tensors[row]
    # rows of the first axis are contiguous; other boxes come with resharding, which this version does not write
    if chunk.start[1:] != (0,) * len(chunk.start[1:]) or chunk.shape[1:] != entry.shape[1:]:
        raise LimitExceeded(f"tensor {entry.name} of {part.snapshot} is in boxes, not rows", hint="upgrade spotckpt")
    return chunk.start[0] * (entry.size_bytes // entry.shape[0]) if chunk.start and entry.shape[0] else 0


class Reader:
    """Reads pieces and checks digests. Threads may share it, each chunk being one thread's business.

    Args:
        part: whose tensors are read.
        source: where they lie.
        progress: told the bytes that came; raising ends the reading.
    """

    def __init__(self, part: Part, source: Source, *, progress: Progress | None = None) -> None:
        self._part = part
        self._source = source
        self._progress = progress
        self._digests: dict[int, tuple[Chunk, _Digest]] = {}

    def read(self, pieces: Sequence[Piece]) -> None:
        """Fills the pieces. A chunk's pieces may come in several calls, in the order of their bytes.

        Raises:
            Corrupt: bytes are missing, or a chunk that is complete does not match its digest.
            StoreError: they cannot be read now.
        """
        short = [cut for piece in pieces for cut in _cut(piece)]
        for piece in short:
            self._digests.setdefault(id(piece.chunk), (piece.chunk, _Digest(piece.chunk.length)))
            if not len(piece.into):
                self._take(piece)
        self._source.read([piece for piece in short if len(piece.into)], self._take)

    def finish(self) -> None:
        """Raises Corrupt if a chunk was not read to its end, so that nobody knows whether it is right."""
        for chunk, digest in self._digests.values():
            if not digest.complete:
                raise Corrupt(f"{self._part.packs[chunk.pack]}: a tensor was read in part only", hint=ANOTHER)

    def _take(self, piece: Piece) -> None:
        found = self._digests[id(piece.chunk)][1].take(piece.at, piece.into)
        if found is not None and found != piece.chunk.digest:
            name, key = self._part.tensors[piece.row].name, self._part.packs[piece.chunk.pack]
            raise Corrupt(f"{key}: tensor {name} does not match its digest {piece.chunk.digest[:12]}…", hint=ANOTHER)
        if self._progress is not None:
            self._progress(len(piece.into))


def _cut(piece: Piece) -> Iterator[Piece]:
    for cut in range(0, max(len(piece.into), 1), SPAN_BYTES):
        into = piece.into[cut : cut + SPAN_BYTES]
        yield Piece(piece.row, piece.first + cut, piece.chunk, piece.at + cut, into)


class _Digest:
    """Of one chunk, whose pieces come in any order: whoever brings the next one hashes all that follow on it."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._hasher = blake3()
        self._hashed = 0
        self._waiting: dict[int, memoryview] = {}
        self._busy = False
        self._lock = threading.Lock()

    def take(self, at: int, data: memoryview) -> str | None:
        """The digest, to the one caller that completes it."""
        with self._lock:
            self._waiting[at] = data
            if self._busy:
                return None
            self._busy = True
        while (following := self._next()) is not None:
            self._hasher.update(following)  # releases the interpreter
            self._hashed += len(following)
        return self._hasher.hexdigest() if self.complete else None

    @property
    def complete(self) -> bool:
        """Whether all of the chunk is hashed."""
        return self._hashed == self._length

    def _next(self) -> memoryview | None:
        with self._lock:
            following = self._waiting.pop(self._hashed, None)
            self._busy = following is not None
            return following


class Packs:
    """The packs in the bucket, as a source.

    Args:
        store: rooted at the run.
        part: from `read_part`.
        deadline: for each transfer.
    """

    def __init__(self, store: Store, part: Part, *, deadline: Deadline | None = None) -> None:
        self._store = store
        self._part = part
        self._deadline = deadline
        self._stats: dict[int, Stat] = {}

    def require(self, rows: Sequence[int]) -> None:
        """Before anything is allocated: a pack that is missing or short is told by one request each.

        Raises:
            Corrupt: one is.
        """
        chunks = [chunk for row in rows for chunk in self._part.tensors[row].chunks]
        for pack in sorted({chunk.pack for chunk in chunks if chunk.length}):
            needed = max(chunk.offset + chunk.length for chunk in chunks if chunk.pack == pack)
            size = self._stat(pack).size_bytes
            if size < needed:
                raise Corrupt(f"{self._part.packs[pack]} has {size} bytes, and {needed} are needed", hint=ANOTHER)

    def read(self, pieces: Sequence[Piece], arrived: Arrived) -> None:
        """See `Source.read`. Neighbours go into one request; all are of the version that was seen first."""
        for pack, key in enumerate(self._part.packs):
            mine = sorted((p for p in pieces if p.chunk.pack == pack), key=lambda p: p.chunk.offset + p.at)
            if mine:
                self._read(key, self._stat(pack).etag, _neighbours(mine), arrived)

    def _read(self, key: str, etag: str, groups: Sequence[Sequence[Piece]], arrived: Arrived) -> None:
        def came(index: int) -> None:
            for piece in groups[index]:
                arrived(piece)

        spans: list[Span] = [(_place(group[0]), [piece.into for piece in group]) for group in groups]
        try:
            self._store.read_into(key, spans, deadline=self._deadline, arrived=came, etag=etag)
        except NotFound as error:
            raise Corrupt(f"{key} is missing", hint=ANOTHER) from error
        except Replaced as error:
            raise Corrupt(f"{key} was replaced while it was read", hint=ANOTHER) from error

    def _stat(self, pack: int) -> Stat:
        key = self._part.packs[pack]
        try:
            return self._stats.setdefault(pack, self._stats.get(pack) or self._store.stat(key, deadline=self._deadline))
        except NotFound as error:
            raise Corrupt(f"{key} is missing", hint=ANOTHER) from error


def _place(piece: Piece) -> int:
    return piece.chunk.offset + piece.at


def _neighbours(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces by place, grouped where one follows on the other, up to what is asked for at a time."""
    groups: list[list[Piece]] = []
    end = size = 0
    for piece in pieces:
        if groups and _place(piece) == end and size + len(piece.into) <= SPAN_BYTES:
            groups[-1].append(piece)
        else:
            groups.append([piece])
            size = 0
        size += len(piece.into)
        end = _place(piece) + len(piece.into)
    return groups
