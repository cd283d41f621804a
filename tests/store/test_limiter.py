"""A cap on the bandwidth."""

from __future__ import annotations

import pytest

from spotckpt.store.limiter import Limiter
from spotckpt.store.open import open_store
from tests.store.test_retry import FakeClock

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
