"""One metric: what of it is known without looking at the log, and its values when somebody asks for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

from spotckpt.address import Mode
from spotckpt.errors import UsageError
from spotckpt.snapshot.rows import Rows
from spotckpt.snapshot.segments import Columns, as_array
from spotckpt.snapshot.values import decode_value

_INF = math.inf
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class Best:
    """A best value and where it was; `epoch` is -1 outside epochs."""

    value: float
    step: int
    epoch: int


class Logged(Protocol):
    """What a series belongs to."""

    rows: Rows
    replaced: int

    def objects(self) -> list[int]:
        """The ids of rows with encoded values."""


class Series(Sequence[Any]):
    """The values of one metric in the order of their steps, with `steps` and `epochs` beside them (epoch -1: none).

    Numbers are float64. What is read is kept until more is logged.

    Attributes:
        path: `set/name`.
        id: of its rows with numbers, in the log; -1 if there are none. object_id: of those with other values.
        given: the steps are the caller's own, so that one value counts for each; else for each step and epoch.
        step, row, value: of the last value; NaN if that is no number.
        least, least_row, most, most_row: of the numbers before the last one; row -1: there is none.
        number: of values, if none is late.
        late: a row was logged at a step before the last one, or at the last one again: read all to know what counts.
        was_finite: no number was NaN or infinite since the process began.
    """

    __slots__ = (
        "_bests_known",
        "_history",
        "_known",
        "given",
        "id",
        "late",
        "least",
        "least_row",
        "most",
        "most_row",
        "name",
        "number",
        "object_id",
        "path",
        "plain",
        "row",
        "set",
        "step",
        "value",
        "was_finite",
    )

    def __init__(self, history: Logged, set_name: str, name: str) -> None:
        self._history = history
        self.set, self.name, self.path = set_name, name, f"{set_name}/{name}"
        self.id = self.object_id = self.row = self.step = self.least_row = self.most_row = -1
        self.value, self.least, self.most = math.nan, _INF, -_INF
        self.number = 0
        self.given = self.late = False
        self.was_finite = self._bests_known = True
        self.plain: bool | None = False
        self._known: tuple[tuple[int, int], Any] | None = None

    def belong_to(self, history: Logged) -> None:
        """Its rows lie there from now on."""
        self._history = history
        self._known = None

    @property
    def is_scalar(self) -> bool:
        """Whether every value is a number, so that there are `columns`."""
        return self.object_id < 0

    # While it is logged

    @property
    def key(self) -> tuple[int, int]:
        """What a value has in common with the last one if it takes its place."""
        epoch = 0 if self.given or self.row < 0 else self._history.rows.epochs[self.row]
        return (self.step, epoch)

    def set_given(self, given: bool) -> None:
        """Whose the steps are. `plain` tells the same, or None if the next value needs a closer look than a number."""
        self.given = given
        self.plain = given if self.is_scalar and not math.isinf(self.value) else None

    def next(self, row: int, step: int, value: float) -> None:
        """A value behind all others is in that row."""
        self._settle_last()
        self.row, self.step, self.value = row, step, value
        self.number += 1
        self.set_given(self.given)

    def again(self, row: int, step: int, value: float, *, is_last: bool, known: bool) -> None:
        """A value at the last step or before it is in that row.

        Args:
            row, step, value: of it.
            is_last: it is at the last step.
            known: it takes the last one's place.
        """
        self.late = True
        if not known:
            self._bests_known = False
        if is_last:
            self.row, self.step, self.value = row, step, value
        self.set_given(self.given)

    def _settle_last(self) -> None:
        """The last value is one of those before the next."""
        last = self.value
        if last < self.least or (last == _INF and self.least_row < 0):
            self.least, self.least_row = last, self.row
        if last > self.most or (last == -_INF and self.most_row < 0):
            self.most, self.most_row = last, self.row

    def settle(self, rows: Any, columns: Columns) -> int:
        """Takes all rows of it, as they lie in the log. Returns how many are late."""
        self.set_given(self.given)
        if not len(rows):
            return 0
        steps, epochs = columns.steps[rows], columns.epochs[rows]
        ahead = steps[1:] > steps[:-1]
        if not self.given:
            ahead |= (steps[1:] == steps[:-1]) & (epochs[1:] > epochs[:-1])
        late = int(len(ahead) - ahead.sum())
        self.late, self.number = late > 0, len(rows)
        self.row = int(rows[len(steps) - 1 - steps[::-1].argmax()])
        self.step = int(columns.steps[self.row])
        self.value = float(columns.values[self.row]) if columns.ids[self.row] == self.id else math.nan
        self._bests_known = False
        self.was_finite = math.isfinite(self.value) or columns.ids[self.row] != self.id
        return late

    # Its values

    def columns(self) -> tuple[Any, Any, Any]:
        """`(steps: int64[n], epochs: int64[n], values: float64[n])`, read-only.

        Raises:
            UsageError: the values are not numbers.
        """
        if not self.is_scalar:
            raise UsageError(f"metric {self.path} has values that are not numbers", hint="read them one by one")
        found: tuple[Any, Any, Any] = self._read()
        return found

    @property
    def steps(self) -> list[int]:
        """The step of each value."""
        found: list[int] = self._read()[0].tolist()
        return found

    @property
    def epochs(self) -> list[int]:
        """The epoch of each value."""
        found: list[int] = self._read()[1].tolist()
        return found

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if index == -1 and self.is_scalar and self.row >= 0:
            return self.value
        found = self._read()[2][index]
        return found.tolist() if self.is_scalar else found

    def __iter__(self) -> Iterator[Any]:
        values = self._read()[2]
        return iter(values.tolist() if self.is_scalar else values)

    def __len__(self) -> int:
        return len(self._read()[0]) if self.late else self.number

    def __repr__(self) -> str:
        return f"Series({list(self)!r})"

    def best(self, mode: Mode) -> Best | None:
        """The smallest or largest value, the earliest of equals; NaN is ignored. None if there is none.

        Raises:
            UsageError: the values are not numbers.
        """
        if not self._bests_known:
            self._find_bests()
        value, row = (self.least, self.least_row) if mode == "min" else (self.most, self.most_row)
        last = self.value
        if not math.isnan(last) and (row < 0 or (last < value if mode == "min" else last > value)):
            value, row = last, self.row
        return None if row < 0 else Best(value, self._history.rows.steps[row], self._history.rows.epochs[row])

    def top(self, mode: Mode, count: int) -> list[Best]:
        """The best values, the best first, of equals the earliest; NaN is ignored. Raises as `best` does."""
        import numpy

        steps, epochs, values = self.columns()
        there = numpy.flatnonzero(~numpy.isnan(values))
        order = there[numpy.argsort(values[there] if mode == "min" else -values[there], kind="stable")[:count]]
        return [Best(*one) for one in zip(*(column[order].tolist() for column in (values, steps, epochs)), strict=True)]

    def improved(self, mode: Mode, patience: int, by: float) -> bool:
        """See `History.improved`."""
        import numpy

        if len(self) <= patience:
            return True
        signed = self.columns()[2] * (1 if mode == "max" else -1)
        signed = numpy.where(numpy.isnan(signed), -_INF, signed)
        return bool(signed[-patience:].max() > signed[:-patience].max() + by)

    def of_epoch(self, epoch: int) -> list[float]:
        """The numbers of that epoch. Of the present one it looks no further back than needed."""
        if self.late or not self.is_scalar:
            _, epochs, values = self.columns()
            return values[epochs == epoch].tolist()  # type: ignore[no-any-return]
        import numpy

        found: list[float] = []
        for end in range(len(self._history.rows), 0, -_BLOCK_ROWS):
            start = max(0, end - _BLOCK_ROWS)
            rows = numpy.flatnonzero(as_array(self._history.rows.ids)[start:end] == self.id)
            epochs = as_array(self._history.rows.epochs)[start:end][rows]
            found[:0] = as_array(self._history.rows.values)[start:end][rows[epochs == epoch]].tolist()
            if ((epochs >= 0) & (epochs < epoch)).any():  # epochs never go back: nothing of this one lies before
                break
        return found

    def all_rows(self) -> Any:
        """Its rows in the log, int64[n]."""
        return self._history.rows.find([one for one in (self.id, self.object_id) if one >= 0])

    def rows(self) -> Any:
        """The rows that count, in the order of their steps, int64[n]."""
        found = self.all_rows()
        return _counting(self._history, found, given=self.given) if self.late else found

    def _read(self) -> Any:
        history = self._history
        version = (len(history.rows), history.replaced)
        if self._known is None or self._known[0] != version:
            self._known = version, self._columns()
        return self._known[1]

    def _columns(self) -> tuple[Any, Any, Any]:
        import numpy

        rows, history = self.rows(), self._history
        steps = as_array(history.rows.steps)[rows]
        epochs = as_array(history.rows.epochs)[rows].astype(numpy.int64)
        values: Any = as_array(history.rows.values)[rows] if self.is_scalar else self._objects(rows)
        for column in (steps, epochs, values):
            if not isinstance(column, list):
                column.flags.writeable = False
        return steps, epochs, values

    def _objects(self, rows: Any) -> list[Any]:
        """Values some of which are not numbers."""
        history = self._history
        starts = history.rows.payload_starts(history.objects())
        return [
            decode_value(history.rows.payload[starts[row] : starts[row] + int(history.rows.values[row])], self.path)
            if history.rows.ids[row] == self.object_id
            else history.rows.values[row]
            for row in rows.tolist()
        ]

    def _find_bests(self) -> None:
        import numpy

        self.columns()
        rows = self.rows()
        rows = rows[rows != self.row]  # the last one may still be replaced

        values = as_array(self._history.rows.values)[rows]
        there = rows[~numpy.isnan(values)]
        self.least, self.least_row, self.most, self.most_row = _INF, -1, -_INF, -1
        if len(there):
            numbers = as_array(self._history.rows.values)[there]
            at, to = int(numbers.argmin()), int(numbers.argmax())
            self.least, self.least_row = float(numbers[at]), int(there[at])
            self.most, self.most_row = float(numbers[to]), int(there[to])
        self._bests_known = True


def _counting(history: Logged, rows: Any, *, given: bool) -> Any:
    """Of all rows with the same key the last one, each in the order of its step, and of its first logging."""
    import numpy

    steps = as_array(history.rows.steps)[rows]
    epochs = numpy.zeros(len(rows), numpy.int32) if given else as_array(history.rows.epochs)[rows]
    order = numpy.lexsort((rows, epochs, steps))
    is_last = numpy.ones(len(rows), bool)
    is_last[:-1] = (numpy.diff(steps[order]) != 0) | (numpy.diff(epochs[order]) != 0)
    kept = order[is_last]
    return rows[kept[numpy.lexsort((rows[kept], steps[kept]))]]
