"""A cap on the bandwidth."""

from __future__ import annotations

import threading

import pytest

from spotckpt.store.limiter import SMALL_BYTES, Limiter, Share
from spotckpt.store.open import open_store
from tests.store.clock import FakeClock

MB = 10**6


def test_bytes_wait_for_their_turn():
    clock = FakeClock()
    limiter = Limiter(MB, clock)
    for _ in range(10):
        limiter(MB // 2)
    assert clock.time == pytest.approx(1000.0 + 4.5)
    clock.time += 100
    limiter(MB)
    assert clock.time == pytest.approx(1104.5), "time that nobody used is not saved up"


def test_what_is_small_never_waits_and_is_counted():
    clock = FakeClock()
    limiter = Limiter(MB, clock)
    limiter(100 * MB)
    for pace in (limiter, Share(limiter)):
        pace(SMALL_BYTES)
    assert clock.time == 1000.0
    limiter(SMALL_BYTES + 1)
    assert clock.time == pytest.approx(1100.0 + 2 * SMALL_BYTES / MB)


class TurnByTurn(FakeClock):
    """Whoever waits for a turn waits until the test lets one go.

    Attributes:
        most: how many ever waited at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = self._waiting = self._gone = 0
        self._changed = threading.Condition()

    def sleep(self, seconds: float) -> None:
        with self._changed:
            self._waiting += 1
            self.most = max(self.most, self._waiting)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._gone, timeout=60)
            self._gone -= 1
            self._waiting -= 1

    def let_one_go_of(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting - self._gone >= count, timeout=60)
            self._gone += 1
            self._changed.notify_all()


def test_each_share_gets_its_turn_however_many_threads_it_has():
    """Four threads against one: of each share one piece waits, so that the line is one's as often as the other's."""
    clock = TurnByTurn()
    limiter = Limiter(20 * MB, clock)
    shares = [Share(limiter), Share(limiter)]

    def send(share: Share, count: int) -> None:
        for _ in range(count):
            share(50_000)

    threads = [threading.Thread(target=send, args=(shares[0], 10)) for _ in range(4)]
    threads.append(threading.Thread(target=send, args=(shares[1], 40)))
    for thread in threads:
        thread.start()
    for left in range(80, 0, -1):
        clock.let_one_go_of(2 if left > 40 else 1)  # whichever goes, the other share still has one
    for thread in threads:
        thread.join(60)
    assert clock.most == 2, "four threads had more than their share"


@pytest.mark.parametrize("server", ["s3_env", "local"])
def test_a_put_keeps_to_the_limit_and_a_read_need_not(server, request, tmp_path):
    clock = FakeClock()
    uri, environment = f"file://{tmp_path}", None
    if server == "s3_env":
        env = request.getfixturevalue("s3_env")
        uri, environment = env.uri, env.environment
    store = open_store(uri, environment=environment, clock=clock, bandwidth_limit=MB)
    for size_bytes in (10 * MB, 20 * MB):  # one request, and parts
        began = clock.time
        store.put("pack", [bytes(size_bytes)])
        seconds = clock.time - began
        # what a store tells of an upload's speed is then at most the limit
        assert size_bytes / MB * 0.9 < seconds < size_bytes / MB * 1.1
    began = clock.time
    store.read("pack", limit_bytes=20 * MB)
    assert clock.time == began
