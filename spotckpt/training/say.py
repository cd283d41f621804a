"""What a trainer tells its user: lines on standard error, through one function."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from spotckpt.errors import SpotckptError
from spotckpt.redact import redacted

_LONG_S = 0.5


def say(text: str) -> None:
    """Writes one line; a closed standard error is no reason to stop a training."""
    _write(f"spotckpt: {redacted(text)}\n")


def _write(text: str) -> None:
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):  # a broken pipe, a closed file
        return


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # a closed file
        return False


class Progress:
    """A line that counts, on a terminal; in a pipe nothing.

    Args:
        what: as in "drawing the epoch's first batches again".
        unit: of the numbers, as in "batches".
    """

    def __init__(self, what: str, unit: str) -> None:
        self._what = what
        self._unit = unit
        self._shown = 0.0
        self._width = 0
        self._ended = False

    def __call__(self, done: int, total: int, remark: str = "") -> None:
        """Shows how far it is, at most five times a second; the last number ends the line."""
        now = time.monotonic()
        if not _is_terminal() or self._ended or (done < total and now - self._shown < 0.2):
            return
        self._shown, self._ended = now, done >= total
        text = f"{self._what}: {done:,} of {total:,} {self._unit}{remark}"
        self._width = max(self._width, len(text))  # a shorter line must cover the longer one before it
        _write(f"\rspotckpt: {text:{self._width}}" + "\n" * (done >= total))


class Arriving:
    """A line that counts bytes and how many come in a second, on a terminal, if it takes long. Threads may share it.

    Args:
        what: as in "restoring".
        total_bytes: how many there will be.
        check: called each time; what it raises ends what it counts.
    """

    def __init__(self, what: str, total_bytes: int, check: Callable[[], None]) -> None:
        self._total_bytes = total_bytes
        self._check = check
        self._began = time.monotonic()
        self._came_bytes = 0
        self._lock = threading.Lock()
        self._line = Progress(what, "MB")

    def __call__(self, count: int) -> None:
        """So many bytes more have come."""
        self._check()
        with self._lock:
            self._came_bytes = min(self._came_bytes + count, self._total_bytes)
            seconds = time.monotonic() - self._began
            if seconds < _LONG_S:
                return
            rate = self._came_bytes / seconds
            self._line(self._came_bytes // 10**6, self._total_bytes // 10**6, f", {rate / 1e6:,.0f} MB/s")


def say_error(error: SpotckptError) -> None:
    """The error in one line: the thing, the cause, what to do."""
    say(f"error: {error}")
