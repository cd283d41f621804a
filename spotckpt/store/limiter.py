"""A cap on how fast bytes are sent, over all threads of a store together, or over several stores."""

from __future__ import annotations

import threading
from collections.abc import Callable

from spotckpt.deadline import SYSTEM_CLOCK, Clock

Pace = Callable[[int], None]
"""Called before that many bytes are sent; returns when they may be."""

SMALL_BYTES = 16 << 10
"""So much is counted and never waits: a heartbeat behind a queue of bulk would look like a death."""


class Limiter:
    """Lets `bytes_per_s` through; who wants to send waits for its turn."""

    def __init__(self, bytes_per_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at = 0.0
        self._lock = threading.Lock()

    def __call__(self, size_bytes: int) -> None:
        """Returns when that many bytes may be sent."""
        with self._lock:
            now = self._clock.now()
            turn = max(now, self._free_at)
            self._free_at = turn + size_bytes / self._bytes_per_s
        if size_bytes > SMALL_BYTES:
            self._clock.sleep(turn - now)


class Share:
    """One store's part of a limit that several share: one thread of it queues at a time, so that each gets its turn."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._lock = threading.Lock()

    def __call__(self, size_bytes: int) -> None:
        """Returns when that many bytes may be sent."""
        if size_bytes <= SMALL_BYTES:
            self._limiter(size_bytes)
            return
        with self._lock:
            self._limiter(size_bytes)


def both(first: Pace | None, second: Pace | None) -> Pace | None:
    """What waits for the one and then for the other."""
    if first is None or second is None:
        return first or second

    def wait(size_bytes: int) -> None:
        first(size_bytes)
        second(size_bytes)

    return wait
