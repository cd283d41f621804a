"""Calls that know no deadline: looking up a name, asking for credentials."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from spotckpt.deadline import Deadline

T = TypeVar("T")


class LateError(TimeoutError):
    """Nothing was sent: what had to come before took until the deadline, or could not be begun."""


def in_time(what: str, call: Callable[[], T], deadline: Deadline) -> T:
    """What the call returns or raises, if that comes in time; else its thread is left behind.

    Args:
        what: for the error.
        call: without side effects that matter later.
        deadline: how long to wait.

    Raises:
        LateError: it does not, or there is no thread to be had for it.
    """
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - the thread's top: raised again where it is waited for
            outcome.put((None, error))

    try:
        threading.Thread(target=run, name="spotckpt-lookup", daemon=True).start()
    except RuntimeError as refusal:
        raise LateError(f"there is no thread to be had {what}") from refusal
    try:
        found, error = outcome.get(timeout=min(deadline.seconds_left, 86400.0))
    except queue.Empty:
        raise LateError(f"it took too long {what}") from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]
