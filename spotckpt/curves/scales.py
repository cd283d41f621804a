"""Where a step lies on another axis: on that of the epochs, and on that of the time since the run began."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from spotckpt.curves.course import Line, Stretch
from spotckpt.snapshot.metrics import History, Series

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Axis = Literal["step", "epoch", "time"]


@dataclass(frozen=True)
class Scales:
    """Of one line.

    Attributes:
        stretches: of the line.
        epochs: (step, epoch) where each epoch begins; empty if none was logged.
        origin: when the run began, seconds since the epoch; None if nothing tells.
    """

    stretches: tuple[Stretch, ...]
    epochs: tuple[tuple[int, int], ...] = ()
    origin: float | None = None

    def has(self, axis: Axis) -> bool:
        """Whether there is anything to place steps by."""
        return axis == "step" or bool(self.epochs if axis == "epoch" else self.origin is not None)

    def place(self, axis: Axis, steps: NDArray[np.int64]) -> Floats:
        """Steps, epochs with their fractions, or seconds since the run began; what is between known places is
        interpolated within its attempt. A step at which one attempt followed another belongs to the later one.

        Args:
            axis: one that it `has`.
            steps: int64[n].
        """
        if axis == "step":
            return steps.astype(np.float64)
        if axis == "epoch":
            return self._epochs_at(steps)
        firsts = np.array([one.first for one in self.stretches[1:]])
        owner = np.searchsorted(firsts, steps, side="right")
        found = np.full(len(steps), np.nan)
        for number, stretch in enumerate(self.stretches):
            mine = owner == number
            if stretch.clock and mine.any():
                found[mine] = _interpolate(steps[mine], stretch.clock) - (self.origin or 0.0)
        return np.maximum.accumulate(found) if len(found) and not np.isnan(found).any() else found

    def span(self, axis: Axis, stretch: Stretch) -> tuple[float, float]:
        """Where an attempt's part begins and ends."""
        if axis == "time":
            if not stretch.clock:
                return np.nan, np.nan
            return stretch.clock[0][1] - (self.origin or 0.0), stretch.clock[-1][1] - (self.origin or 0.0)
        first, last = self.place(axis, np.array([stretch.first, stretch.last]))
        return float(first), float(last)

    def moment(self, axis: Axis, step: int, at: float | None) -> float:
        """Where something lies that happened at a step, and at a time if that is known better."""
        if axis == "time" and at is not None and self.origin is not None:
            return at - self.origin
        return float(self.place(axis, np.array([step]))[0])

    def _epochs_at(self, steps: NDArray[np.int64]) -> Floats:
        begins = np.array(self.epochs, dtype=np.float64)
        if len(begins) == 1:
            return np.full(len(steps), begins[0, 1])
        found = np.interp(steps, begins[:, 0], begins[:, 1])
        for (step, epoch), (other, another), outside in (
            (begins[0], begins[1], steps < begins[0, 0]),
            (begins[-2], begins[-1], steps > begins[-1, 0]),
        ):
            slope = (another - epoch) / max(1.0, other - step)
            found[outside] = another + (steps[outside] - other) * slope
        return found


def scales_of(line: Line, history: History, *, origin: float | None) -> Scales:
    """The scales of a line; epochs as the history tells."""
    first: dict[int, int] = {}
    for names in history.values():
        for series in names.values():
            if series.is_scalar and not has_own_steps(series):
                for step, epoch in _beginnings(series):
                    first[epoch] = min(step, first.get(epoch, step))
    return Scales(line.stretches, tuple((step, epoch) for epoch, step in sorted(first.items())), origin)


def own_scales(series: Series) -> Scales:
    """Of a metric whose steps are the caller's own, where nothing tells which steps of the run they were."""
    return Scales((), tuple(_beginnings(series)))


def run_steps(series: Series, scales: Scales) -> NDArray[np.int64] | None:
    """The steps of the run, about, at which values were logged that have steps of their own (epochs, samples).

    Of each epoch the values are spread evenly, the last one at its end.

    Returns:
        int64[n], growing; None if no epochs tell.
    """
    epochs = series.columns()[1]
    if not scales.epochs or not len(epochs) or (epochs < 0).any() or (np.diff(epochs) < 0).any():
        return None
    known, first, counts = np.unique(epochs, return_index=True, return_counts=True)
    which = np.searchsorted(known, epochs)
    places = epochs + (np.arange(len(epochs)) - first[which] + 1) / counts[which]
    begins = np.array(scales.epochs, dtype=np.float64)
    end, last = scales.stretches[-1].last if scales.stretches else 0, begins[-1]
    if end > last[0]:  # an epoch that is under way ends where the run has come to
        begins = np.vstack([begins, [end, last[1] + 1]])
    found: NDArray[np.int64] = np.rint(np.interp(places, begins[:, 1], begins[:, 0])).astype(np.int64)
    return found


def has_own_steps(series: Series) -> bool:
    """Whether it was logged with `step=`."""
    return bool(getattr(series, "given", False))


def _beginnings(series: Series) -> Iterator[tuple[int, int]]:
    """(step, epoch) where each epoch begins."""
    steps, epochs, _ = series.columns()
    begins = np.concatenate(([0], np.flatnonzero(np.diff(epochs)) + 1))
    for place in begins if len(epochs) else ():
        if epochs[place] >= 0:
            yield int(steps[place]), int(epochs[place])


def _interpolate(steps: NDArray[np.int64], clock: tuple[tuple[int, float], ...]) -> Floats:
    known = np.array(clock)
    return np.interp(steps, known[:, 0], np.maximum.accumulate(known[:, 1]))
