"""What a trainer tells its user: lines on standard error, through one function."""

from __future__ import annotations

import sys

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


def say_error(error: SpotckptError) -> None:
    """The error in one line: the thing, the cause, what to do."""
    say(f"error: {error}")
