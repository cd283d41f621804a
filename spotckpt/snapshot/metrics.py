"""The metric history: per set (train, valid, ...) and name, every value with its step and epoch.

Values are float64 and come back exactly. It is state: it is saved and restored, so learning curves and decisions that
depend on them go on as if nothing had happened.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from spotckpt.errors import Corrupt, UsageError

AXIS = "step"


@dataclass(frozen=True)
class Best:
    """A best value and where it was; `epoch` is -1 outside epochs."""

    value: float
    step: int
    epoch: int


class Series(Sequence[float]):
    """The values of one metric in the order of logging, with `steps` and `epochs` beside them (epoch -1: none)."""

    def __init__(self) -> None:
        self._values = array("d")
        self._steps = array("q")
        self._epochs = array("q")

    @property
    def steps(self) -> list[int]:
        """The step of each value."""
        return self._steps.tolist()

    @property
    def epochs(self) -> list[int]:
        """The epoch of each value."""
        return self._epochs.tolist()

    @property
    def is_scalar(self) -> bool:
        """Whether every value is a number, so that there are `columns`."""
        return True

    def columns(self) -> tuple[Any, Any, Any]:
        """`(steps: int64[n], epochs: int64[n], values: float64[n])`, read-only; not for a series that grows."""
        import numpy

        columns = tuple(numpy.frombuffer(column, dtype=column.typecode) for column in self._columns)
        for column in columns:
            column.flags.writeable = False
        return columns  # type: ignore[return-value]

    @property
    def _columns(self) -> tuple[array[int], array[int], array[float]]:
        return self._steps, self._epochs, self._values

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        return self._values[index] if isinstance(index, int) else self._values[index].tolist()

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Series({self._values.tolist()!r})"

    def put(self, value: float, step: int, epoch: int) -> None:
        """Appends the value, or replaces the one logged at the same step and epoch."""
        for index in range(len(self._steps) - 1, -1, -1):
            if self._steps[index] < step:  # steps grow, so this ends at once but for a replacement
                break
            if self._steps[index] == step and self._epochs[index] == epoch:
                self._values[index] = value
                return
        self._values.append(value)
        self._steps.append(step)
        self._epochs.append(epoch)

    def best(self, mode: Literal["min", "max"]) -> Best | None:
        """The smallest or largest value, the earliest of equals; NaN is ignored. None if there is none."""
        better = min if mode == "min" else max
        places = [index for index, value in enumerate(self._values) if not math.isnan(value)]
        if not places:
            return None
        index = better(places, key=self._values.__getitem__)
        return Best(self._values[index], self._steps[index], self._epochs[index])

    def mean(self, epoch: int) -> float:
        """The mean of that epoch's values, NaN if there are none."""
        values = []
        for index in range(len(self._epochs) - 1, -1, -1):
            if self._epochs[index] == epoch:
                values.append(self._values[index])
            elif 0 <= self._epochs[index] < epoch:  # epochs never go back: nothing of this one lies before
                break
        if not values:
            return math.nan
        finite = all(math.isfinite(value) for value in values)
        return (math.fsum(values) if finite else sum(values)) / len(values)  # fsum: the same in any order

    def state(self) -> dict[str, Any]:
        """`axis`: "step"; `at`: int64[n]; `epoch`: int64[n]; `value`: float64[n]. Copies."""
        import numpy

        return {
            "axis": AXIS,
            "at": numpy.array(self._steps, dtype=numpy.int64),
            "epoch": numpy.array(self._epochs, dtype=numpy.int64),
            "value": numpy.array(self._values, dtype=numpy.float64),
        }

    @classmethod
    def load(cls, state: Mapping[str, Any], *, name: str = "") -> Series:
        """The inverse of `state`.

        Raises:
            Corrupt: an axis that this version does not know, or arrays that do not fit each other.
        """
        if not isinstance(state, Mapping) or state.get("axis") != AXIS:
            raise Corrupt(f"metric {name} is not over steps", hint="a newer spotckpt wrote it: upgrade")
        series = cls()
        try:
            series._values = array("d", state["value"].tolist())
            series._steps = array("q", state["at"].tolist())
            series._epochs = array("q", state["epoch"].tolist())
        except (KeyError, AttributeError, TypeError, OverflowError) as error:
            raise Corrupt(f"metric {name} is not three arrays: {error}", hint="use another snapshot") from error
        if not len(series._values) == len(series._steps) == len(series._epochs):
            raise Corrupt(f"metric {name} has arrays of different lengths", hint="use another snapshot")
        return series


class History(Mapping[str, Mapping[str, Series]]):
    """`history["valid"]["top1"]` is a `Series`. Missing names raise KeyError, as in any mapping."""

    def __init__(self) -> None:
        self._sets: dict[str, dict[str, Series]] = {}

    def __getitem__(self, name: str) -> Mapping[str, Series]:
        return self._sets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def log(self, set: str, name: str, value: object, *, step: int, epoch: int | None = None) -> None:
        """Appends a value; the same step and epoch again replaces it.

        Args:
            set: `train`, `valid`, ...; without `/` and `:`.
            name: the metric; without `:`.
            value: a float, int or bool, or anything zero-dimensional with `item()`.
            step: where on the axis. epoch: None outside epochs.

        Raises:
            UsageError: a name that cannot be selected by, or a value that is not one number.
        """
        if not set or "/" in set or ":" in set or not name or ":" in name:
            raise UsageError(f"metric {set!r} / {name!r}: a set has no '/' or ':', a name no ':'", hint="rename it")
        number = as_float(value, f"{set}/{name}")
        series = self._sets.setdefault(set, {}).setdefault(name, Series())
        series.put(number, step, -1 if epoch is None else epoch)

    def mean(self, set: str, name: str, epoch: int | None = None) -> float:
        """The mean over an epoch, correctly rounded; NaN if nothing was logged in it."""
        series = self._sets.get(set, {}).get(name)
        return math.nan if series is None else series.mean(-1 if epoch is None else epoch)

    def best(self, set: str, name: str, mode: Literal["min", "max"]) -> Best | None:
        """The best value so far and where it was; NaN is ignored."""
        series = self._sets.get(set, {}).get(name)
        return None if series is None else series.best(mode)

    def latest(self) -> dict[str, float]:
        """The last value of each metric, by `set/name`."""
        return {f"{set}/{name}": series[-1] for set, name, series in self._each()}

    def bests(self) -> dict[str, Best]:
        """The best value of each metric, by `set/name:min` and `set/name:max`."""
        found = {}
        for set, name, series in self._each():
            for mode in ("min", "max"):
                best = series.best(mode)
                if best is not None:
                    found[f"{set}/{name}:{mode}"] = best
        return found

    def state(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything, as the state tree can hold it: set → name → `Series.state()`."""
        return {set: {name: series.state() for name, series in names.items()} for set, names in self._sets.items()}

    def load(self, state: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Replaces everything by what `state` gave. Raises as `Series.load` does, then nothing has changed."""
        self._sets = {
            set: {name: Series.load(body, name=f"{set}/{name}") for name, body in names.items()}
            for set, names in state.items()
        }

    def _each(self) -> Iterator[tuple[str, str, Series]]:
        for set, names in self._sets.items():
            for name, series in names.items():
                if len(series):
                    yield set, name, series


def as_float(value: object, path: str) -> float:
    """One number as float64.

    Raises:
        UsageError: it is more than one number, or none.
    """
    item = getattr(value, "item", None)
    if getattr(value, "ndim", None) == 0 and callable(item):
        value = item()
    if not isinstance(value, (float, int)):
        raise UsageError(
            f"metric {path}: {type(value).__name__} is not one number; non-scalar values are not supported yet",
            hint="log a float, as in loss.item()",
        )
    try:
        return float(value)
    except OverflowError as error:
        raise UsageError(f"metric {path}: {error}", hint="log a float") from error
