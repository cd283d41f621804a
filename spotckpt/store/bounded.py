"""Calls that know no deadline: looking up a name, asking for credentials."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from spotckpt.deadline import Deadline

T = TypeVar("T")


def bounded(call: Callable[[], T], deadline: Deadline) -> T:
    """What the call returns or raises, if that comes in time; else its thread is left behind.

    Raises:
        TimeoutError: it does not.
    """
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - the thread's top: raised again where it is waited for
            outcome.put((None, error))

    threading.Thread(target=run, name="spotckpt-lookup", daemon=True).start()
    try:
        found, error = outcome.get(timeout=min(deadline.seconds_left, 86400.0))
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]
