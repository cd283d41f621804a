"""A cap on how fast bytes are sent, over all threads of a store together."""

from __future__ import annotations

import threading

from spotckpt.deadline import SYSTEM_CLOCK, Clock


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
        self._clock.sleep(turn - now)
