"""Giving a transfer up: whatever waits in any of its threads ends at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Halt:
    """Set once, for good."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._ends: set[Callable[[], None]] = set()

    @property
    def is_set(self) -> bool:
        """Whether the transfer is given up."""
        return self._event.is_set()

    def set(self) -> None:
        """Gives it up."""
        with self._lock:
            self._event.set()
            ends = list(self._ends)
        for end in ends:
            end()

    def sleep(self, seconds: float) -> None:
        """Returns after that long, or when it is given up."""
        self._event.wait(seconds)

    @contextmanager
    def ends(self, end: Callable[[], None]) -> Iterator[None]:
        """Inside, `end` is called when the transfer is given up, from the thread that does so."""
        with self._lock:
            self._ends.add(end)
        try:
            yield
        finally:
            with self._lock:
                self._ends.discard(end)
