"""The one place that tries again: a Store that wraps a Store."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import tenacity
from tenacity import RetryCallState

from spotckpt.deadline import Deadline
from spotckpt.errors import AlreadyExists, OutcomeUnknown, Replaced, StoreError, Unavailable
from spotckpt.store.base import (
    Arrived,
    Buffer,
    Progress,
    Reading,
    Span,
    Stat,
    Store,
    Unfinished,
    size_of,
    size_of_spans,
)

T = TypeVar("T")

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 8.0


def _may_pass(error: BaseException) -> bool:
    # what was replaced stays replaced
    return isinstance(error, Unavailable | OutcomeUnknown) and not isinstance(error, Replaced)


def policy(deadline: Deadline) -> dict[str, Any]:
    """Arguments for tenacity: full jitter up to a cap, given up before a wait that would end after the deadline."""

    def too_late(state: RetryCallState) -> bool:
        return state.upcoming_sleep >= deadline.seconds_left

    return {
        "retry": tenacity.retry_if_exception(_may_pass),
        "wait": tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        "stop": too_late,
        "reraise": True,
    }


class Retrying(Store):
    """Tries again what failed for want of an answer, within the deadline; all other errors pass at once.

    A write that is tried again is a replacement of equal bytes, a deletion or a conditional create, whose second try
    then finds its own object: `put_if_absent` takes that for success. If any try of a `create` ended unknown, the
    error is `OutcomeUnknown`, whatever the last one said.
    """

    def __init__(self, store: Store) -> None:
        self.inner = store
        self.uri = store.uri
        self.call_timeout_s = store.call_timeout_s
        self.clock = store.clock

    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """See `Store.create`."""
        deadline = self.until(deadline, size_bytes=len(data))
        unknown: list[OutcomeUnknown] = []

        def attempt() -> None:
            try:
                self.inner.create(key, data, deadline=deadline)
            except OutcomeUnknown as error:
                unknown.append(error)
                raise

        try:
            self._run(attempt, deadline)
        except (AlreadyExists, OutcomeUnknown):
            raise
        except StoreError as error:
            if unknown:
                raise unknown[-1] from error
            raise

    def put_if_absent(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> bool:
        """See `Store.put_if_absent`."""
        return super().put_if_absent(key, data, deadline=self.until(deadline, size_bytes=2 * len(data)))

    def put(
        self,
        key: str,
        data: Sequence[Buffer],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        reading: Reading | None = None,
    ) -> Stat:
        """See `Store.put`."""
        deadline = self.until(deadline, size_bytes=size_of(data))
        told = _Told(progress)
        return self._run(
            lambda: self.inner.put(key, data, deadline=deadline, progress=told.new_try(), reading=reading), deadline
        )

    def put_resumed(
        self, key: str, data: Sequence[Buffer], *, deadline: Deadline | None = None, progress: Progress | None = None
    ) -> Stat:
        """See `Store.put_resumed`."""
        deadline = self.until(deadline, size_bytes=size_of(data))
        told = _Told(progress)
        return self._run(
            lambda: self.inner.put_resumed(key, data, deadline=deadline, progress=told.new_try()), deadline
        )

    def read(self, key: str, *, limit_bytes: int, deadline: Deadline | None = None) -> bytes:
        """See `Store.read`."""
        deadline = self.until(deadline, size_bytes=limit_bytes)
        return self._run(lambda: self.inner.read(key, limit_bytes=limit_bytes, deadline=deadline), deadline)

    def read_into(
        self,
        key: str,
        spans: Sequence[Span],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        arrived: Arrived | None = None,
        etag: str | None = None,
        width: int | None = None,
    ) -> None:
        """See `Store.read_into`. A further try reads only what is missing, of the version that the first one saw."""
        deadline = self.until(deadline, size_bytes=size_of_spans(spans))
        version = etag or self.stat(key, deadline=deadline).etag
        told = _Told(progress)
        there: set[int] = set()

        def attempt() -> None:
            missing = [index for index in range(len(spans)) if index not in there]

            def came(place: int) -> None:
                there.add(missing[place])
                if arrived is not None:
                    arrived(missing[place])

            self.inner.read_into(
                key,
                [spans[index] for index in missing],
                deadline=deadline,
                progress=told.new_try(size_of_spans([spans[index] for index in there])),
                arrived=came,
                etag=version,
                width=width,
            )

        self._run(attempt, deadline)

    def list(self, prefix: str, *, deadline: Deadline | None = None) -> list[Stat]:
        """See `Store.list`."""
        deadline = self.until(deadline)
        return self._run(lambda: self.inner.list(prefix, deadline=deadline), deadline)

    def stat(self, key: str, *, deadline: Deadline | None = None) -> Stat:
        """See `Store.stat`."""
        deadline = self.until(deadline)
        return self._run(lambda: self.inner.stat(key, deadline=deadline), deadline)

    def delete(self, keys: Iterable[str], *, deadline: Deadline | None = None) -> None:
        """See `Store.delete`."""
        deadline = self.until(deadline)
        remaining = list(keys)
        self._run(lambda: self.inner.delete(remaining, deadline=deadline), deadline)

    def settle(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """See `Store.settle`."""
        deadline = self.until(deadline)
        self._run(lambda: self.inner.settle(key, data, deadline=deadline), deadline)

    def time(self, *, deadline: Deadline | None = None) -> float:
        """See `Store.time`."""
        deadline = self.until(deadline)
        return self._run(lambda: self.inner.time(deadline=deadline), deadline)

    def unfinished(self, *, deadline: Deadline | None = None) -> builtins.list[Unfinished]:
        """See `Store.unfinished`."""
        deadline = self.until(deadline)
        return self._run(lambda: self.inner.unfinished(deadline=deadline), deadline)

    def discard(self, write: Unfinished, *, deadline: Deadline | None = None) -> None:
        """See `Store.discard`."""
        deadline = self.until(deadline)
        self._run(lambda: self.inner.discard(write, deadline=deadline), deadline)

    def close(self) -> None:
        """See `Store.close`."""
        self.inner.close()

    def _run(self, attempt: Callable[[], T], deadline: Deadline) -> T:
        return tenacity.Retrying(**policy(deadline), sleep=self.clock.sleep)(attempt)


class _Told:
    """Forwards progress over several tries so that no byte is told twice."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._told = 0

    def new_try(self, start: int = 0) -> Progress | None:
        progress = self._progress
        if progress is None:
            return None
        reached = start

        def forward(count: int) -> None:
            nonlocal reached
            reached += count
            news = max(0, reached - self._told)
            self._told += news
            progress(news)

        return forward
