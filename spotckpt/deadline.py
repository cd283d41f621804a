"""Clocks and deadlines.

All waiting is measured on CLOCK_BOOTTIME: unlike CLOCK_MONOTONIC it goes on while the machine is suspended, and unlike
the wall clock nobody sets it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What the code needs of time; tests pass their own."""

    def now(self) -> float:
        """Seconds since boot, suspend included."""

    def wall(self) -> float:
        """Seconds since the epoch, as the machine believes. For showing, never for ordering."""

    def sleep(self, seconds: float) -> None:
        """Return after about that long."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        """CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """CLOCK_REALTIME."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Zero and less return at once."""
        time.sleep(max(0.0, seconds))


SYSTEM_CLOCK: Clock = SystemClock()


@dataclass(frozen=True)
class Deadline:
    """A point on the boot-time clock; `at` is in seconds and may be infinite."""

    at: float
    now: Callable[[], float] = SYSTEM_CLOCK.now

    @classmethod
    def after(cls, seconds: float, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        """The point that many seconds from now."""
        return cls(clock.now() + seconds, clock.now)

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.at - self.now())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.seconds_left <= 0.0

    def within(self, seconds: float) -> Deadline:
        """The earlier of this deadline and that many seconds from now."""
        return Deadline(min(self.at, self.now() + seconds), self.now)
