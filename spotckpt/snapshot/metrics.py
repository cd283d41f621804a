"""The metric history: an append-only log of every value with its series, step and epoch, in the order of logging.

What was staged for a snapshot is never changed: logging a step again adds a row that counts for the earlier one. So the
rows of a snapshot are the first rows of the log, whatever comes later, and a snapshot need only send the new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spotckpt.address import Mode
from spotckpt.errors import UsageError
from spotckpt.snapshot.rows import Rows
from spotckpt.snapshot.segments import Columns, Name, RowsStaged, Size, rows_to_stage
from spotckpt.snapshot.series import Best, Series
from spotckpt.snapshot.values import as_number, encode_value

MOST_SERIES = 1 << 16
MOST_LISTED = 1000
"""Metrics whose latest and best values stand in a manifest."""
_COMPACT_ROWS = 4096
_INF = math.inf
_MODES: tuple[Mode, ...] = ("min", "max")

__all__ = ["Best", "History", "Series"]


def _nothing(_: str) -> None:
    pass


@dataclass
class _Committed:
    """What is known of the rows that are in the bucket: the segments of the newest snapshot that was told."""

    sizes: tuple[Size, ...] = ()
    ids: frozenset[str] = frozenset()


class History(Mapping[str, Mapping[str, Series]]):
    """`history["valid"]["top1"]` is a `Series`. Missing names raise KeyError, as in any mapping.

    Args:
        say: told once when a metric turns NaN or infinite.

    Attributes:
        rows: the log; of a point that was logged again it has several.
        late: how many rows were logged at a step that was logged, or behind it.
        replaced: how many values were changed in place.
    """

    def __init__(self, say: Callable[[str], None] = _nothing) -> None:
        self._say = say
        self._sets: dict[str, dict[str, Series]] = {}
        self._committed = _Committed()
        self._clear()

    def _clear(self) -> None:
        self.rows = Rows()
        self._by_id: list[tuple[Series, bool]] = []
        self.late = self._frozen = self._marked = 0
        self.replaced = 0

    def __getitem__(self, name: str) -> Mapping[str, Series]:
        return self._sets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def freeze(self) -> int:
        """From here on the rows so far are not changed in place. Returns their number."""
        self._frozen = len(self.rows)
        return self._frozen

    def mark(self) -> None:
        """From here on rows are new, for `latest`; those so far are not changed in place."""
        self._marked = self.freeze()

    # Logging

    def log(self, set: str, values: Mapping[str, object], step: int, epoch: int = -1, *, given: bool = False) -> None:
        """Appends values of some metrics of a set.

        Args:
            set: `train`, `valid`, ...; without `/` and `:`.
            values: by name, which has no `:`: a number, anything zero-dimensional with `item()`, or any value that a
                state tree can hold (`snapshot.tree`).
            step: where on the axis.
            epoch: -1 outside epochs.
            given: the step is the caller's own, and one value is kept for each; else one for each step and epoch.

        Raises:
            UsageError: a name that cannot be selected by.
            EncodeError: a value that cannot be stored.
        """
        names, rows = self._sets.get(set) or {}, self.rows
        for name, value in values.items():
            series = names.get(name)
            if (
                series is None
                or type(value) is not float
                or step <= series.step
                or series.plain is not given
                or not -_INF < value < _INF
            ):
                self._log(set, name, value, step=step, epoch=epoch, given=given)
                names, rows = self._sets[set], self.rows  # others, if rows were thrown out
                continue
            row = len(rows.values)
            try:  # as `Rows.append`, without a call
                rows.steps.append(step)
                rows.epochs.append(epoch)
                rows.ids.append(series.id)
                rows.values.append(value)
            except BaseException:
                rows.cut(row)
                raise
            last = series.value
            if last < series.least:
                series.least, series.least_row = last, series.row
            if last > series.most:
                series.most, series.most_row = last, series.row
            series.value, series.step, series.row = value, step, row
            series.number += 1

    def _log(self, set: str, name: str, value: object, *, step: int, epoch: int, given: bool) -> None:
        """As `log`, for whatever is not the next finite number of a known metric."""
        path = f"{set}/{name}"
        number = as_number(value, path)
        payload = None if number is not None else encode_value(value, path)
        series = self._sets.get(set, {}).get(name) or self._new_series(set, name)
        if given and not series.given:
            series.set_given(True)
        key, last = (step, 0 if given else epoch), series.key
        if number is not None and not math.isfinite(number):
            self._turned(series, number, step)
        rows = self.rows
        if key == last and number is not None and series.row >= self._frozen and rows.ids[series.row] == series.id:
            rows.values[series.row] = series.value = number
            rows.epochs[series.row] = epoch
            series.set_given(series.given)
            self.replaced += 1
            return
        if number is not None:
            row = rows.append(step, epoch, self._number_id(series), number)
        else:
            assert payload is not None
            row = rows.append(step, epoch, self._object_id(series), float(len(payload)), payload)
        if series.row < 0 or key > last:
            series.next(row, step, math.nan if number is None else number)
        else:
            self.late += 1
            series.again(row, step, math.nan if number is None else number, is_last=step == last[0], known=key == last)
            self._compact()

    def _turned(self, series: Series, number: float, step: int) -> None:
        if series.was_finite:
            series.was_finite = False
            self._say(f"warning: {series.path} is {number} at step {step}; the last snapshot without it is kept")

    def _new_series(self, set: str, name: str) -> Series:
        if not isinstance(set, str) or not set or "/" in set or ":" in set or not name or ":" in name:
            raise UsageError(f"metric {set!r} / {name!r}: a set has no '/' or ':', a name no ':'", hint="rename it")
        return self._sets.setdefault(set, {}).setdefault(name, Series(self, set, name))

    def _number_id(self, series: Series) -> int:
        if series.id < 0:
            series.id = self._register(series, is_number=True)
        return series.id

    def _object_id(self, series: Series) -> int:
        if series.object_id < 0:
            series.object_id = self._register(series, is_number=False)
        return series.object_id

    def _register(self, series: Series, *, is_number: bool) -> int:
        if len(self._by_id) >= MOST_SERIES:
            raise UsageError(f"metric {series.path} is one too many: there are {MOST_SERIES}", hint="log fewer names")
        self._by_id.append((series, is_number))
        return len(self._by_id) - 1

    def objects(self) -> list[int]:
        """The ids of rows with encoded values."""
        return [ident for ident, (_, is_number) in enumerate(self._by_id) if not is_number]

    def _name_of(self, ident: int) -> Name:
        series, is_number = self._by_id[ident]
        return Name(series.set, series.name, is_number, series.given)

    # Asking

    def mean(self, set: str, name: str, epoch: int = -1) -> float:
        """The mean over an epoch, correctly rounded; NaN if nothing was logged in it.

        Raises:
            UsageError: the values are not numbers.
        """
        series = self._sets.get(set, {}).get(name)
        if series is None:
            return math.nan
        values = series.of_epoch(epoch)
        if not values:
            return math.nan
        finite = all(map(math.isfinite, values))
        return (math.fsum(values) if finite else sum(values)) / len(values)  # fsum: the same in any order

    def best(self, set: str, name: str, mode: Mode) -> Best | None:
        """The best value so far and where it was; NaN is ignored."""
        series = self._sets.get(set, {}).get(name)
        return None if series is None else series.best(mode)

    def top(self, set: str, name: str, mode: Mode, count: int) -> list[Best]:
        """The best values so far, the best first, of equals the earliest; NaN is ignored."""
        series = self._sets.get(set, {}).get(name)
        return [] if series is None else series.top(mode, count)

    def improved(self, set: str, name: str, mode: Mode, *, patience: int, by: float) -> bool:
        """Whether one of the last `patience` values is better than all before them by so much; NaN never is.

        True as long as there are no more values than that.
        """
        series = self._sets.get(set, {}).get(name)
        return series is None or series.improved(mode, patience, by)

    def latest(self, *, new: bool = False) -> dict[str, float]:
        """The last value of each metric whose values are numbers, by `set/name`.

        Args:
            new: only of those logged since `mark`.
        """
        return {one.path: one.value for one in self._numbers() if not new or one.row >= self._marked}

    def bests(self) -> dict[str, Best]:
        """The best value of each metric, by `set/name:min` and `set/name:max`."""
        found = {}
        for series in self._numbers():
            for mode in _MODES:
                best = series.best(mode)
                if best is not None:
                    found[f"{series.path}:{mode}"] = best
        return found

    def _numbers(self) -> list[Series]:
        """A manifest has room for some; the others are in the history only."""
        found = [one for names in self._sets.values() for one in names.values() if one.is_scalar]
        return found[:MOST_LISTED]

    # Staging

    def stage(self) -> RowsStaged:
        """Which rows the next snapshot must bring along; `rows.copy` copies them. They do not change any more."""
        return rows_to_stage(self._committed.sizes, Size(self.freeze(), len(self.rows.payload)), self._names_since)

    def _names_since(self, row: int) -> dict[int, Name]:
        # a late row lies behind its series' last one, and nobody knows where
        ids = (one for one, (series, _) in enumerate(self._by_id) if series.row >= row or series.row < 0 or series.late)
        return {one: self._name_of(one) for one in ids}

    def staged(self, snapshot: str) -> None:
        """The rows of `stage` are sealed under that id."""
        self._committed.ids |= {snapshot}

    def committed(self, snapshot: str | None, sizes: Sequence[Size]) -> None:
        """A snapshot is in the bucket, its history in segments of these sizes. One of other rows is passed over.

        None: no snapshot can be gone on from, and the next brings all rows.
        """
        if snapshot is None:
            self._committed = _Committed()
        elif snapshot in self._committed.ids:
            later = frozenset(one for one in self._committed.ids if one > snapshot)
            self._committed = _Committed(tuple(sizes), later)

    # Loading

    def load(self, columns: Columns, sizes: Sequence[Size] = ()) -> None:
        """Replaces everything by the rows of a snapshot, which lie in the bucket in segments of these sizes."""
        self._clear()
        self._committed = _Committed(tuple(sizes))
        self.rows.extend(columns)
        self._make_series(columns)
        self.freeze()

    def take(self, other: History) -> None:
        """Becomes the other one, which is not used any more."""
        names = ("rows", "late", "replaced", "_frozen", "_marked", "_by_id", "_sets", "_committed")
        for name in names:
            setattr(self, name, getattr(other, name))
        for series, _ in self._by_id:
            series.belong_to(self)

    def _make_series(self, columns: Columns) -> None:
        import numpy

        self._sets = {}
        order = numpy.argsort(columns.ids, kind="stable")
        bounds = numpy.searchsorted(columns.ids[order], numpy.arange(len(columns.names) + 1))
        for ident, name in enumerate(columns.names):
            series = self._sets.setdefault(name.set, {}).setdefault(name.name, Series(self, name.set, name.name))
            if name.is_number:
                series.id = ident
            else:
                series.object_id = ident
            series.set_given(series.given or name.given)
            self._by_id.append((series, name.is_number))
        for names in self._sets.values():
            for series in names.values():
                ids = [one for one in (series.id, series.object_id) if one >= 0]
                rows = numpy.sort(numpy.concatenate([order[bounds[one] : bounds[one + 1]] for one in ids]))
                self.late += series.settle(rows, columns)

    def _compact(self) -> None:
        """Throws out rows that do not count, once they are many: what is in the bucket then no longer fits."""
        if self.late < _COMPACT_ROWS or self.late < len(self.rows) // 2:
            return
        import numpy

        columns = self.rows.columns([self._name_of(one) for one in range(len(self._by_id))])
        keep = numpy.ones(len(self.rows), bool)
        for names in self._sets.values():
            for series in names.values():
                if series.late:
                    keep[series.all_rows()] = False
                    keep[series.rows()] = True
        kept = columns.only(keep)
        del columns
        finite = {one.path: one.was_finite for names in self._sets.values() for one in names.values()}
        if len(kept.values) < len(self.rows) * 3 // 4:
            marked = int(numpy.count_nonzero(keep[: self._marked]))
            self.load(kept)
            self._marked = marked
            for names in self._sets.values():
                for series in names.values():
                    series.was_finite = finite[series.path]
        self.late = 0
