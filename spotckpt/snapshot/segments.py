"""The metric history in the bucket: segments, each the columns of some rows of the log. Pure but for numpy's views.

A segment is an object of its own, written once: a safetensors file with the columns `step`, `value`, `epoch`, `series`
and `payload`, and in its metadata what each number in `series` stands for. A manifest lists the segments that hold its
rows, in the order of the rows. A new one takes in the trailing ones of the parent's list as long as they are small
against it, so the list stays short and each row is sent a logarithmic number of times.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from spotckpt.errors import Corrupt
from spotckpt.snapshot.fields import Fields
from spotckpt.snapshot.keys import parse_key, split_shared
from spotckpt.snapshot.pack import Layout, TensorSpec, header_length, layout, read_whole_header

ROW_BYTES = 22
SMALL_BYTES = 32 << 10
"""Segments that are smaller together become one: a request costs more than so many bytes."""

_COLUMNS = (("step", "I64", 8), ("value", "F64", 8), ("epoch", "I32", 4), ("series", "U16", 2))
_NUMBERS, _VALUES = "numbers", "values"


class Name(NamedTuple):
    """What an id in the column `series` stands for.

    Attributes:
        is_number: the rows hold numbers; else the lengths of encoded values (`snapshot.values`).
        given: as `Series.given`.
    """

    set: str
    name: str
    is_number: bool = True
    given: bool = False


class Size(NamedTuple):
    """How much of the log: rows, and bytes of encoded values."""

    rows: int
    payload_bytes: int

    @property
    def num_bytes(self) -> int:
        """Without names and header."""
        return ROW_BYTES * self.rows + self.payload_bytes


NOTHING = Size(0, 0)


@dataclass(frozen=True)
class SegmentRef:
    """A segment as a manifest names it; `digest` is BLAKE3 of the whole object."""

    key: str
    length: int
    digest: str
    rows: int
    payload_bytes: int

    @property
    def size(self) -> Size:
        """What it holds."""
        return Size(self.rows, self.payload_bytes)

    @classmethod
    def from_fields(cls, fields: Fields) -> SegmentRef:
        """Reads it. A key outside the grammar, or a length that cannot be, is Corrupt."""
        key = fields.text("key")
        parsed = parse_key(split_shared(key)[1])
        if parsed is None or parsed.kind != "history":
            raise fields.corrupt(f"{key!r} is not the key of a history segment")
        length, rows = fields.count("length", least=8), fields.count("rows", least=1)
        found = cls(key, length, fields.digest("digest"), rows, fields.count("payload_bytes"))
        if found.size.num_bytes >= length:
            raise fields.corrupt(f"{key} is too short for {rows} rows")
        return found


@dataclass(frozen=True)
class RowsStaged:
    """Rows of the log that lie in a slot behind the tensors: `step`, `value`, `epoch`, `series`, then encoded values.

    Attributes:
        first: the first row.
        rows: how many.
        payload_first, payload_bytes: of the encoded values, likewise.
        names: of the series that occur, by id.
    """

    first: int = 0
    rows: int = 0
    payload_first: int = 0
    payload_bytes: int = 0
    names: Mapping[int, Name] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """What they take in the slot."""
        return Size(self.rows, self.payload_bytes).num_bytes

    @property
    def end(self) -> Size:
        """All of the log up to their last."""
        return Size(self.first + self.rows, self.payload_first + self.payload_bytes)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a slot's description."""
        names = [[ident, *name] for ident, name in self.names.items()]
        return {**vars(self), "names": names}

    @classmethod
    def from_fields(cls, fields: Fields) -> RowsStaged:
        """The inverse."""
        first, rows, payload_first, payload = map(fields.count, ("first", "rows", "payload_first", "payload_bytes"))
        return cls(
            first, rows, payload_first, payload, {ident: Name(*name) for ident, *name in fields.get("names", list)}
        )


NO_ROWS = RowsStaged()


@dataclass(frozen=True)
class Columns:
    """Rows of the log.

    Attributes:
        steps: int64[n]. values: float64[n]. epochs: int32[n]. ids: uint16[n], indices into `names`.
        payload: the encoded values, in the order of their rows.
    """

    steps: Any
    values: Any
    epochs: Any
    ids: Any
    payload: bytes
    names: tuple[Name, ...]

    def only(self, keep: Any) -> Columns:
        """Copies of the rows for which `keep`, bool[n], is true."""
        import numpy

        is_object = numpy.array([not name.is_number for name in self.names], bool)[self.ids]
        lengths = numpy.where(is_object, self.values, 0.0).astype(numpy.int64)
        starts = numpy.cumsum(lengths) - lengths
        spans = zip(starts[keep & is_object].tolist(), lengths[keep & is_object].tolist(), strict=True)
        payload = b"".join(self.payload[start : start + length] for start, length in spans)
        return Columns(self.steps[keep], self.values[keep], self.epochs[keep], self.ids[keep], payload, self.names)


def as_array(column: array[Any]) -> Any:
    """The same memory. It must be gone before the column grows."""
    import numpy

    return numpy.frombuffer(column, numpy.dtype(column.typecode)) if column else numpy.empty(0, column.typecode)


# Which rows go into which segment


def num_kept(sizes: Sequence[Size], new_bytes: int) -> int:
    """How many of the parent's segments stay as they are; the new one takes in the others.

    Each that stays is at least twice as large as all that follow it, so there are no more than the logarithm of all.
    """
    kept = len(sizes)
    while kept and new_bytes:
        last = sizes[kept - 1].num_bytes
        if last >= 2 * new_bytes and last + new_bytes > SMALL_BYTES:
            break
        kept, new_bytes = kept - 1, new_bytes + last
    return kept


def rows_to_stage(committed: Sequence[Size], log: Size, names_since: Callable[[int], Mapping[int, Name]]) -> RowsStaged:
    """What a snapshot must bring along, given the segments of one that came before it.

    Whatever its parent turns out to be, of those that came between: with these rows its list can be made.
    """
    there = _sum(committed)
    first = _sum(committed[: num_kept(committed, log.num_bytes - there.num_bytes)])
    rows, payload = log.rows - first.rows, log.payload_bytes - first.payload_bytes
    return RowsStaged(first.rows, rows, first.payload_bytes, payload, names_since(first.rows) if rows else {})


class Discontinued(Corrupt):
    """The rows before the staged ones are not in the bucket as they should be: they must be staged too."""


def num_continued(parent: Sequence[Size], staged: RowsStaged) -> int:
    """How many of the parent's segments a snapshot refers to.

    Raises:
        Discontinued: the parent's segments end before the staged rows begin.
    """
    if not staged.first:
        return 0  # its log may have been written anew
    there, end = _sum(parent), staged.end
    if there.rows < staged.first or there.rows > end.rows or there.payload_bytes > end.payload_bytes:
        raise Discontinued(
            f"the history of its parent has {there.rows} rows, and the snapshot goes on from row {staged.first}",
            hint="the next snapshot brings all of them",
        )
    kept = num_kept(parent, end.num_bytes - there.num_bytes)
    starts = [0, *accumulate(size.rows for size in parent)]
    return next(count for count in range(kept, len(parent) + 1) if starts[count] >= staged.first)


def _sum(sizes: Sequence[Size]) -> Size:
    return Size(sum(size.rows for size in sizes), sum(size.payload_bytes for size in sizes))


# What a segment is made of


def segment_layout(size: Size, names: Mapping[int, Name]) -> Layout:
    """Where the columns lie in a segment."""
    specs = [TensorSpec(name, dtype, (size.rows,)) for name, dtype, _ in _COLUMNS]
    if size.payload_bytes:
        specs.append(TensorSpec("payload", "U8", (size.payload_bytes,)))
    table = {
        str(ident): [name.set, name.name, _NUMBERS if name.is_number else _VALUES, *(["given"] if name.given else [])]
        for ident, name in names.items()
    }
    return layout(specs, metadata={"series": json.dumps(table, separators=(",", ":"))})


def slices(staged: RowsStaged, data: memoryview, before: Size) -> list[memoryview]:
    """Of the staged rows those from `before` on, column after column as in a segment."""
    skipped, found, at = before.rows - staged.first, [], 0
    for _, _, item in _COLUMNS:
        found.append(data[at + item * skipped : at + item * staged.rows])
        at += item * staged.rows
    found.append(data[at + before.payload_bytes - staged.payload_first : at + staged.payload_bytes])
    return [column for column in found if len(column)]


def read_segment(data: bytes | bytearray, reference: SegmentRef) -> tuple[Columns, dict[int, Name]]:
    """The rows of a segment whose digest is right. The columns' `names` are empty: they are those of all segments.

    Raises:
        Corrupt, LimitExceeded: it is not what its reference says.
    """
    import numpy

    key = reference.key
    start = header_length(bytes(data[:8]), key=key)
    tensors, metadata = read_whole_header(bytes(data[:start]), key=key)
    stored = {one.name: one for one in tensors}
    columns = []
    for name, dtype, item in (*_COLUMNS, ("payload", "U8", 1)):
        one = stored.get(name)
        length = reference.payload_bytes if name == "payload" else reference.rows
        if one is None and not length:
            columns.append(numpy.empty(0, numpy.uint8))
            continue
        if one is None or (one.dtype, one.shape) != (dtype, (length,)) or start + one.end > len(data):
            raise Corrupt(f"{key}: column {name} is not as it should be", hint="use another snapshot")
        kind = f"<{dtype[0].lower()}{item}"
        columns.append(numpy.frombuffer(data, kind, length, start + one.start))
    steps, values, epochs, ids, payload = columns
    names = _names(metadata, key)
    _check(reference, ids, values, names)
    return Columns(steps, values, epochs, ids, payload.tobytes(), ()), names


def _names(metadata: Mapping[str, Any], key: str) -> dict[int, Name]:
    try:
        table = json.loads(metadata["series"])
        found = {}
        for ident, (set_name, name, kind, *flags) in table.items():
            if not (0 <= int(ident) < 1 << 16 and type(set_name) is type(name) is str and kind in (_NUMBERS, _VALUES)):
                raise ValueError(f"series {ident}")
            found[int(ident)] = Name(set_name, name, kind == _NUMBERS, "given" in flags)
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Corrupt(f"{key}: the names of its series cannot be read: {error}", hint="use another snapshot") from error


def _check(reference: SegmentRef, ids: Any, values: Any, names: Mapping[int, Name]) -> None:
    import numpy

    known = numpy.zeros(1 << 16, bool)
    known[list(names)] = True
    if not known[ids].all():
        raise Corrupt(f"{reference.key}: a row belongs to no series", hint="use another snapshot")
    objects = numpy.zeros(1 << 16, bool)
    objects[[ident for ident, name in names.items() if not name.is_number]] = True
    lengths = values[objects[ids]]
    if not (numpy.isfinite(lengths).all() and (lengths >= 0).all() and lengths.sum() == reference.payload_bytes):
        raise Corrupt(f"{reference.key}: encoded values of another length", hint="use another snapshot")


def joined(segments: Sequence[tuple[Columns, dict[int, Name]]], *, key: str) -> Columns:
    """The rows of all segments as one.

    Raises:
        Corrupt: they do not agree on what a series is called.
    """
    import numpy

    names: dict[int, Name] = {}
    for _, found in segments:
        for ident, name in found.items():
            if ident in names and names[ident][:3] != name[:3]:
                raise Corrupt(
                    f"{key}: its segments call series {ident} by different names", hint="use another snapshot"
                )
            names[ident] = name
    if sorted(names) != list(range(len(names))):
        raise Corrupt(f"{key}: a series of its history has no name", hint="use another snapshot")
    parts = [columns for columns, _ in segments]

    def join(name: str, kind: str) -> Any:
        return numpy.concatenate([numpy.empty(0, kind), *(getattr(part, name) for part in parts)])

    return Columns(
        join("steps", "<i8"),
        join("values", "<f8"),
        join("epochs", "<i4"),
        join("ids", "<u2"),
        b"".join(part.payload for part in parts),
        tuple(names[ident] for ident in range(len(names))),
    )
