"""The part: one rank's state tree, and for every tensor where its bytes lie and what their digest is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

from spotckpt.errors import LimitExceeded
from spotckpt.snapshot.envelope import unwrap, wrap
from spotckpt.snapshot.fields import MAX_INT, Fields
from spotckpt.snapshot.keys import SnapshotId, parse_key, part_key, split_shared
from spotckpt.snapshot.pack import ITEM_BYTES, MAX_TENSORS, TensorSpec, kinds_of, size_bytes

MAX_PART_BYTES = 256 << 20


class Chunk(NamedTuple):
    """A box of a tensor, in row-major order, in one pack.

    Attributes:
        pack: index into the part's `packs`.
        offset: from the first byte of the pack's object (in a `Staged`: from the start of the data section).
        length: bytes.
        start: the box's lowest corner in the tensor.
        shape: the box's sides.
        digest: BLAKE3 of its bytes; empty in a `Staged`, where nobody has read them yet.
    """

    pack: int
    offset: int
    length: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    digest: str = ""


class TensorEntry(NamedTuple):
    """A tensor of the state tree.

    The bytes in the pack are always row-major; `stride` (in elements) says how the tensor lay in memory when it was
    not, so that it can be laid so again.

    A plain tuple, as a chunk is, because a state may have tens of thousands: it is made, and written as a row of the
    table, without a call of Python for each.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    chunks: tuple[Chunk, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Part:
    """`packs/<id>/rank-00000.json`. The same staged bytes always give the same part, byte for byte.

    Attributes:
        snapshot: whose part.
        rank: of which rank.
        packs: keys of the packs that the chunks lie in.
        tree: the state tree, in which `{"$tensor": i}` and the like are indices into `tensors`.
        tensors: the table.
    """

    snapshot: SnapshotId
    rank: int
    packs: tuple[str, ...]
    tree: Any
    tensors: tuple[TensorEntry, ...]

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return wrap(
            {
                "snapshot": str(self.snapshot),
                "rank": self.rank,
                "packs": list(self.packs),
                "tree": self.tree,
                "tensors": self.tensors,
            },
            limit_bytes=MAX_PART_BYTES,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Part:
        """Reads the object at `key`; nothing is allocated by what it declares.

        Raises:
            Corrupt: as `unwrap`, or it belongs at another key, or the table contradicts itself.
            LimitExceeded: a declared size over the cap.
        """
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_PART_BYTES), key)
        part = cls(
            fields.snapshot("snapshot"),
            fields.count("rank"),
            fields.texts("packs"),
            fields.body.get("tree"),
            table_from(fields, "tensors"),
        )
        if part_key(part.snapshot, part.rank) != key:
            raise fields.corrupt(f"it is the part of {part.snapshot}, rank {part.rank}")
        _check_packs(part.packs, fields)
        _check_chunks(part.tensors, len(part.packs), fields)
        return part


def _check_packs(packs: Iterable[str], fields: Fields) -> None:
    for pack in packs:
        found = parse_key(split_shared(pack)[1])
        if found is None or found.kind != "pack":
            raise fields.corrupt(f"{pack!r} is not the key of a pack")


def _check_chunks(entries: Iterable[TensorEntry], num_packs: int, fields: Fields) -> None:
    for entry in entries:
        for chunk in entry.chunks:
            if chunk.pack >= num_packs or len(chunk.digest) != 64:
                raise fields.corrupt(f"tensor {entry.name} has a chunk without a pack or a digest")


def table_from(fields: Fields, name: str) -> tuple[TensorEntry, ...]:
    """The tensor table in a field: rows of the values of a `TensorEntry`, each chunk a row of those of a `Chunk`.

    It is checked column by column, so that tens of thousands of rows cost milliseconds.

    Raises:
        Corrupt: a value of another type, or chunks that do not fill their tensor. Digests are the caller's to check.
        LimitExceeded: more rows, or a larger tensor, than the cap.
    """
    columns = _Columns(fields, name)
    *described, chunks = columns.of_rows(len(TensorEntry._fields))
    entries = tuple(map(TensorEntry, *columns.of_specs(described), columns.chunks(chunks)))
    for entry, kind in zip(entries, kinds_of(entries), strict=True):
        _check_fit(entry, kind.size_bytes, fields)
    return entries


def specs_from(fields: Fields, name: str) -> tuple[TensorSpec, ...]:
    """A table without chunks. Raises as `table_from` does."""
    columns = _Columns(fields, name)
    specs = tuple(map(TensorSpec, *columns.of_specs(columns.of_rows(len(TensorSpec._fields)))))
    for spec in specs:
        _check_stride(spec, fields)
    return specs


class _Columns:
    """Checks and converts columns of a table; whatever is not of exactly its type is Corrupt."""

    def __init__(self, fields: Fields, name: str) -> None:
        self.fields = fields
        self.name = name

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise self.fields.corrupt(f"field {self.name!r} holds {what}")

    def of_rows(self, width: int) -> list[Any]:
        rows = self.fields.get(self.name, list)
        if len(rows) > MAX_TENSORS:
            what = f"{self.fields.key} lists more than {MAX_TENSORS} tensors"
            raise LimitExceeded(what, hint="it was not written by us")
        return self.of(rows, width)

    def of_specs(self, columns: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        names, dtypes, shapes, strides = columns
        return self.texts(names), self.texts(dtypes), self.counts_each(shapes), self.maybe_counts_each(strides)

    def of(self, rows: Sequence[Any], width: int) -> list[Any]:
        good = set(map(type, rows)) <= {list} and set(map(len, rows)) <= {width}
        self.require(good, f"a row that is not a list of {width}")
        return [[row[place] for row in rows] for place in range(width)]

    def texts(self, column: Sequence[Any]) -> Sequence[str]:
        self.require(set(map(type, column)) <= {str}, "something else where a string should be")
        return column

    def counts(self, column: Sequence[Any]) -> Sequence[int]:
        good = set(map(type, column)) <= {int} and min(column, default=0) >= 0 and max(column, default=0) <= MAX_INT
        self.require(good, "something else where a count should be")
        return column

    def counts_each(self, column: Sequence[Any]) -> list[tuple[int, ...]]:
        self.require(set(map(type, column)) <= {list}, "something else where a list of counts should be")
        self.counts(list(chain.from_iterable(column)))
        return list(map(tuple, column))

    def maybe_counts_each(self, column: Sequence[Any]) -> list[tuple[int, ...] | None]:
        given = iter(self.counts_each([one for one in column if one is not None]))
        return [None if one is None else next(given) for one in column]

    def chunks(self, column: Sequence[Any]) -> list[tuple[Chunk, ...]]:
        self.require(set(map(type, column)) <= {list}, "something else where a list of chunks should be")
        packs, offsets, lengths, starts, shapes, digests = self.of(
            list(chain.from_iterable(column)), len(Chunk._fields)
        )
        found = map(
            Chunk,
            self.counts(packs),
            self.counts(offsets),
            self.counts(lengths),
            self.counts_each(starts),
            self.counts_each(shapes),
            self.texts(digests),
        )
        return [tuple(islice(found, len(one))) for one in column]


def _check_stride(one: TensorSpec | TensorEntry, fields: Fields) -> None:
    if one.stride is not None and len(one.stride) != len(one.shape):
        raise fields.corrupt(f"tensor {one.name} has a stride of other dimensions")


def _check_fit(entry: TensorEntry, size: int, fields: Fields) -> None:
    """The chunks fill the tensor, as far as their sizes tell."""
    _check_stride(entry, fields)
    for chunk in entry.chunks:
        if chunk.shape == entry.shape and chunk.start == (0,) * len(entry.shape) and chunk.length == size:
            continue
        inside = len(chunk.start) == len(chunk.shape) == len(entry.shape) and all(
            start + side <= whole for start, side, whole in zip(chunk.start, chunk.shape, entry.shape, strict=True)
        )
        if not inside or chunk.length != size_bytes(entry.dtype, chunk.shape):
            raise fields.corrupt(f"tensor {entry.name} has a chunk that does not fit")
    if sum(chunk.length for chunk in entry.chunks) != size:
        raise fields.corrupt(f"the chunks of tensor {entry.name} do not fill it")
