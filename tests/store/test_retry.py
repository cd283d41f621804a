"""What is tried again, how long, and what the error says after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from spotckpt.deadline import Deadline
from spotckpt.errors import AlreadyExists, Denied, NotFound, OutcomeUnknown, Replaced, StoreError, Unavailable
from spotckpt.store.base import Buffer, Progress, Reading, Span, Stat
from spotckpt.store.local import LocalStore
from spotckpt.store.retry import LONGEST_WAIT_S, Retrying
from tests.store.clock import FakeClock

Failure = Callable[[], StoreError]


class Faltering(LocalStore):
    """Fails as told before it works; `lands` of the failures come after the write."""

    def __init__(self, root: str, failures: Sequence[type[StoreError]], *, clock: FakeClock, lands: bool) -> None:
        super().__init__(root, clock=clock)
        self.failures = list(failures)
        self.lands = lands
        self.calls = 0

    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        self.calls += 1
        if not self.failures:
            return super().create(key, data)
        kind = self.failures.pop(0)
        if self.lands and kind is OutcomeUnknown:
            super().create(key, data)
        raise kind("create", key, "as told")

    def put(
        self,
        key: str,
        data: Sequence[Buffer],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        reading: Reading | None = None,
    ) -> Stat:
        self.calls += 1
        if self.failures and progress is not None:
            progress(3)
            raise self.failures.pop(0)("put", key, "as told")
        return super().put(key, data, progress=progress, reading=reading)

    def read_into(self, key: str, spans: Sequence[Span], **options: Any) -> None:
        self.calls += 1
        if not self.failures:
            return super().read_into(key, spans, **{**options, "deadline": None})
        super().read_into(key, spans[:1], **{**options, "deadline": None})
        raise self.failures.pop(0)("read_into", key, "as told")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def faltering(tmp_path, clock):
    def make(*failures: type[StoreError], lands: bool = False) -> Retrying:
        return Retrying(Faltering(str(tmp_path), failures, clock=clock, lands=lands))

    return make


@pytest.mark.parametrize("kind", [Unavailable, OutcomeUnknown])
def test_what_may_go_well_later_is_tried_again(faltering, kind):
    store = faltering(kind, kind, kind)
    store.create("key", b"data")
    assert store.inner.calls == 4


@pytest.mark.parametrize("kind", [Denied, NotFound, AlreadyExists, StoreError])
def test_what_will_not_change_is_told_at_once(faltering, clock, kind):
    store = faltering(kind)
    with pytest.raises(kind):
        store.create("key", b"data")
    assert store.inner.calls == 1
    assert clock.slept == []


def test_a_write_that_landed_unseen_is_ours(faltering):
    store = faltering(OutcomeUnknown, lands=True)
    assert store.put_if_absent("key", b"nonce") is False


@pytest.mark.parametrize("after", [Unavailable, Denied])
def test_unknown_once_is_unknown_to_the_end(faltering, after):
    store = faltering(OutcomeUnknown, *[after] * 1000, lands=True)
    with pytest.raises(OutcomeUnknown):
        store.put_if_absent("key", b"nonce")


@pytest.mark.fault(31)
def test_waits_are_jittered_and_capped_and_end_before_the_deadline(faltering, clock):
    store = faltering(*[Unavailable] * 1000)
    deadline = Deadline.after(120.0, clock)
    with pytest.raises(Unavailable, match="as told"):
        store.create("key", b"data", deadline=deadline)
    assert clock.time <= deadline.at
    assert all(0 <= wait <= LONGEST_WAIT_S for wait in clock.slept)
    assert len(set(clock.slept)) > len(clock.slept) // 2
    assert deadline.at - clock.time <= LONGEST_WAIT_S
    assert len(clock.slept) > 120 / LONGEST_WAIT_S - 1


def test_no_byte_is_told_twice(faltering):
    told: list[int] = []
    store = faltering(Unavailable, Unavailable)
    store.put("key", [b"0123456789"], progress=told.append)
    assert sum(told) == 10
    assert all(count >= 0 for count in told)


def test_a_span_that_arrived_is_not_read_again(faltering):
    store = faltering()
    store.put("key", [b"0123456789"])
    store.inner.failures = [Unavailable, Unavailable]
    told: list[int] = []
    there: list[int] = []
    data = bytearray(10)
    view = memoryview(data)
    store.read_into(
        "key", [(0, [view[:3]]), (3, [view[3:7]]), (7, [view[7:]])], progress=told.append, arrived=there.append
    )
    assert bytes(data) == b"0123456789"
    assert there == [0, 1, 2]
    assert sum(told) == 10


def test_what_was_replaced_is_told_at_once(faltering, clock):
    store = faltering()
    etag = store.put("key", [b"old"]).etag
    store.put("key", [b"new and longer"])
    with pytest.raises(Replaced, match="key"):
        store.read_into("key", [(0, [memoryview(bytearray(3))])], etag=etag)
    assert clock.slept == []
