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
    """The metrics logged since the weights last changed, and whether the watched one improved among them."""

    def __init__(self, keep_best: Metric | None) -> None:
        self._keep_best = keep_best
        self._updates = 0
        self.values: dict[str, float] = {}
        self.improved = False

    def logged(self, path: str, value: float, best_before: float | None) -> None:
        """Takes note of a value of the metric `path`; `best_before` is the best until now, if there was one."""
        self.values[path] = value
        if self._keep_best is None or path != self._keep_best.path or math.isnan(value):
            return
        if best_before is None:
            self.improved = True
        elif self._keep_best.mode == "max":
            self.improved = value > best_before
        else:
            self.improved = value < best_before

    def weights_at(self, updates: int) -> None:
        """Forgets everything when the number of optimizer steps has moved: those values belong to other weights."""
        if updates != self._updates:
            self._updates = updates
            self.values.clear()
            self.improved = False
