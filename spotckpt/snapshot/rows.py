"""The log of the metric history in memory: 22 bytes a row in four columns, and encoded values beside."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from spotckpt.snapshot.segments import Columns, Name, RowsStaged, as_array


class Rows:
    """Columns that only grow, each by a sixteenth of its length at a time, in place where the system can.

    Attributes:
        steps: int64[n]. epochs: int32[n]. ids: uint16[n]: of the series. values: float64[n]: numbers, or the lengths of
            encoded values.
        payload: the encoded values.
    """

    def __init__(self) -> None:
        self.steps, self.epochs, self.ids, self.values = array("q"), array("i"), array("H"), array("d")
        self.payload = bytearray()

    def __len__(self) -> int:
        return len(self.values)

    def append(self, step: int, epoch: int, ident: int, value: float, payload: bytes = b"") -> int:
        """A row, wholly or not at all. Returns its number."""
        row = len(self.values)
        try:
            self.steps.append(step)
            self.epochs.append(epoch)
            self.ids.append(ident)
            self.payload += payload
            self.values.append(value)
        except BaseException:
            self.cut(row)
            raise
        return row

    def cut(self, row: int) -> None:
        """No memory, or Ctrl-C, between two columns: what was begun is undone."""
        for column in (self.steps, self.epochs, self.ids, self.values):
            del column[row:]

    def copy(self, rows: RowsStaged, into: memoryview) -> None:
        """Writes staged rows, column after column, into their place in a slot."""
        end, at = rows.first + rows.rows, 0
        for column in (self.steps, self.values, self.epochs, self.ids):
            with memoryview(column) as view, view[rows.first : end].cast("B") as part:
                into[at : at + len(part)] = part
                at += len(part)
        with memoryview(self.payload) as view:
            into[at : rows.size_bytes] = view[rows.payload_first : rows.payload_first + rows.payload_bytes]

    def extend(self, columns: Columns) -> None:
        """Appends these rows."""
        for column, values in (
            (self.steps, columns.steps),
            (self.epochs, columns.epochs),
            (self.ids, columns.ids),
            (self.values, columns.values),
        ):
            if len(values):
                column.frombytes(memoryview(values).cast("B"))
        self.payload += columns.payload

    def columns(self, names: Sequence[Name]) -> Columns:
        """All rows. The arrays must be gone before anything is logged."""
        return Columns(
            as_array(self.steps),
            as_array(self.values),
            as_array(self.epochs),
            as_array(self.ids),
            bytes(self.payload),
            tuple(names),
        )

    def payload_starts(self, objects: Sequence[int]) -> dict[int, int]:
        """Where the encoded value of a row begins, of each row of these series."""
        import numpy

        rows = numpy.flatnonzero(numpy.isin(as_array(self.ids), objects))
        lengths = as_array(self.values)[rows].astype(numpy.int64)
        return dict(zip(rows.tolist(), (numpy.cumsum(lengths) - lengths).tolist(), strict=True))

    def find(self, ids: Sequence[int]) -> Any:
        """The rows of some series, int64[n]."""
        import numpy

        return numpy.flatnonzero(numpy.isin(as_array(self.ids), ids))
