"""When a snapshot is due, and which metrics were measured with exactly the weights at hand."""

from __future__ import annotations

import math
from collections.abc import Callable

from spotckpt.address import Metric
from spotckpt.config import Every
from spotckpt.deadline import SYSTEM_CLOCK


class Schedule:
    """Tells at each boundary whether a periodic snapshot is due; one read of a clock, or none."""

    def __init__(self, every: Every, step: int, *, now: Callable[[], float] = SYSTEM_CLOCK.now) -> None:
        self._every = every
        self._now = now
        self.restart(step)

    def due(self, step: int) -> bool:
        """Whether the time or the number of steps has gone by since the last one."""
        if self._pause and self._now() < self._pause:
            return False
        if self._every.steps:
            return step - self._step >= self._every.steps
        return self._now() - self._time >= self._every.seconds

    def restart(self, step: int) -> None:
        """Counts from here on."""
        self._step = step
        self._time = self._now()
        self._pause = 0.0

    def postpone(self, seconds: float) -> None:
        """Nothing is due for so long: there was no room for a snapshot."""
        self._pause = self._now() + seconds


class Evaluation:
    """Which metrics were measured with the weights at hand, and whether the watched one improved among them.

    Attributes:
        watched: the metric, if there is one.
        updates: what `weights_at` was told last.
        improved: the watched metric did, with these weights.
    """

    def __init__(self, keep_best: Metric | None) -> None:
        self.watched = keep_best
        self.updates = 0
        self.improved = False

    def logged(self, value: float, best_before: float | None) -> None:
        """Takes note of a value of the watched metric; `best_before` is the best until now, if there was one."""
        assert self.watched is not None
        if math.isnan(value):
            return
        if best_before is None:
            self.improved = True
        elif self.watched.mode == "max":
            self.improved = value > best_before
        else:
            self.improved = value < best_before

    def weights_at(self, updates: int, mark: Callable[[], None]) -> None:
        """Forgets everything when the number of optimizer steps has moved: those values belong to other weights.

        Args:
            updates: that number.
            mark: called then: what is logged from there on is of the weights at hand.
        """
        if updates != self.updates:
            self.updates = updates
            self.improved = False
            mark()
