"""What a trainer tells its user: lines on standard error, through one function."""

from __future__ import annotations

import sys
import time

from spotckpt.errors import SpotckptError


def say(text: str) -> None:
    """Writes one line; a closed standard error is no reason to stop a training."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"spotckpt: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # a broken pipe, a closed file
        return


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
        self._ended = False

    def __call__(self, done: int, total: int) -> None:
        """Shows how far it is, at most five times a second; the last number ends the line."""
        now = time.monotonic()
        if sys.stderr is None or not sys.stderr.isatty() or self._ended or (done < total and now - self._shown < 0.2):
            return
        self._shown, self._ended = now, done >= total
        sys.stderr.write(f"\rspotckpt: {self._what}: {done:,} of {total:,} {self._unit}" + "\n" * (done >= total))
        sys.stderr.flush()


def say_error(error: SpotckptError) -> None:
    """The error in one line: the thing, the cause, what to do."""
    say(f"error: {error}")
