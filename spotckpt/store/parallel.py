"""Several requests at a time, steered from the calling thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

from spotckpt.deadline import Deadline
from spotckpt.errors import Unavailable

T = TypeVar("T")


def at_once(
    starts: Iterable[Callable[[], Future[T]]], *, width: int, deadline: Deadline, done: Callable[[T], None]
) -> list[T]:
    """Starts the requests, at most `width` in flight, and calls `done` in this thread as each ends.

    The first error, one raised by `done` included, cancels the rest and is raised.

    Returns:
        The results in the order of `starts`.
    """
    running: dict[Future[T], int] = {}
    results: dict[int, T] = {}

    def collect() -> None:
        # Each request has the deadline itself; this time-out is for an event loop that does not turn.
        finished, _ = wait(running, return_when=FIRST_COMPLETED, timeout=min(deadline.seconds_left, 86400.0) + 20.0)
        if not finished:
            raise Unavailable("transfer", "", "the event loop does not answer")
        for future in finished:
            results[running.pop(future)] = result = future.result()
            done(result)

    try:
        for index, start in enumerate(starts):
            if len(running) == width:
                collect()
            running[start()] = index
        while running:
            collect()
    except BaseException:
        for future in running:
            future.cancel()
        wait(running, timeout=1.0)
        raise
    return [results[index] for index in range(len(results))]
