"""What is asked of a run in passing, checked where it is asked: numbers of epochs, steps and values, and modes."""

from __future__ import annotations

import operator

from spotckpt.errors import UsageError


def count_of(loop: str, number: object) -> int:
    """A number of epochs or steps, from 0.

    Raises:
        UsageError: it is none.
    """
    count = _index(number)
    if count < 0:
        raise UsageError(f"run.{loop}({number!r:.60}): that is no number of {loop}", hint=f"as in run.{loop}(90)")
    return count


def step_of(step: object) -> int:
    """A step on a metric's axis, from 0.

    Raises:
        UsageError: it is none.
    """
    found = _index(step)
    if not 0 <= found < 1 << 63:
        raise UsageError(f"run.log(step={step!r:.60}): that is no step", hint="a step is an integer from 0")
    return found


def positive(name: str, number: object) -> int:
    """A number of values, from 1.

    Raises:
        UsageError: it is none.
    """
    count = _index(number)
    if count < 1:
        raise UsageError(f"{name}={number!r:.60} is no count", hint=f"as in {name}=5")
    return count


def check_mode(mode: object) -> None:
    """Whether it says which of two values is better.

    Raises:
        UsageError: it does not.
    """
    if mode not in ("min", "max"):
        raise UsageError(f"mode={mode!r:.60} is not known", hint='it is "min" or "max"')


def _index(number: object) -> int:
    """The integer, -1 for what is none."""
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        return -1
