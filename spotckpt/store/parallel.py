"""Several requests at a time, each in a thread, steered from the calling thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from spotckpt.store.halt import Halt

T = TypeVar("T")


def at_once(jobs: Iterable[Callable[[], T]], *, width: int, halt: Halt, done: Callable[[T], None]) -> None:
    """Does the jobs in `width` threads and calls `done` in this one as each ends.

    A job is taken from the iterable when a thread is free for it, by one thread at a time: what the iterable does for a
    job is done in order, while earlier jobs run. The first error, one of the iterable or of `done` included, ends
    the others through `halt` and is raised when they have ended. Where no more threads can be had, fewer do it.
    """
    work = _Work(jobs, halt)
    threads = _started(work, width)
    if not threads:
        for job in work.jobs():
            done(job())
        return
    try:
        for result in work.results(len(threads)):
            done(result)
    except BaseException:
        halt.set()
        raise
    finally:
        for thread in threads:
            thread.join()


class _Work(Generic[T]):
    """Jobs to take and what came of them."""

    def __init__(self, jobs: Iterable[Callable[[], T]], halt: Halt) -> None:
        self._jobs = iter(jobs)
        self._halt = halt
        self._taking = threading.Lock()
        self._outcomes: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()

    def jobs(self) -> Iterator[Callable[[], T]]:
        """One job after the other, until there is none or the transfer is given up."""
        while True:
            with self._taking:
                job = None if self._halt.is_set else next(self._jobs, None)
            if job is None:
                return
            yield job

    def run(self) -> None:
        """A thread's work."""
        try:
            for job in self.jobs():
                self._outcomes.put((job(),))
            self._outcomes.put(None)
        except BaseException as error:  # noqa: BLE001 - the thread's top: raised in the calling thread
            self._outcomes.put(error)

    def results(self, num_threads: int) -> Iterator[T]:
        """What the jobs return, until every thread has ended; the first error is raised."""
        while num_threads:
            outcome = self._outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is None:
                num_threads -= 1
            else:
                yield outcome[0]


def _started(work: _Work[T], width: int) -> list[threading.Thread]:
    threads = []
    for number in range(width):
        thread = threading.Thread(target=work.run, name=f"spotckpt-transfer-{number}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends
            break
        threads.append(thread)
    return threads
