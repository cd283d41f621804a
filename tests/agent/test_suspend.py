"""A machine that sleeps for ten minutes in the middle of an upload: CLOCK_BOOTTIME goes on, everything else stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spotckpt.agent.run import Run
from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.keys import claim_key
from spotckpt.snapshot.records import Claim, Holder
from spotckpt.store.open import open_store
from tests.agent.harness import HELD_BYTES_PER_S
from tests.agent.inside import Turned, agent_of, attempt, seal
from tests.support.checker import check
from tests.support.proxy import Proxy
from tests.support.servers import S3Env, wait_until

SLEPT_S = 600.0
NUMBERS = 1 << 20


@pytest.fixture
def proxy(s3_env: S3Env, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


@pytest.fixture
def clock() -> Turned:
    return Turned()


@pytest.fixture
def run(tmp_path: Path, s3_env: S3Env, proxy: Proxy, clock: Turned) -> Iterator[Run]:
    """An attempt in the middle of an upload."""
    claim(s3_env, 1)
    agent = agent_of(tmp_path, clock)
    run = attempt(agent, s3_env.uri, 1, "")
    seal(run, 7, NUMBERS)
    proxy.wait_for("PUT", r"/packs/.*safetensors")
    yield run
    run.leave()
    wait_until(lambda: agent.run_of(run.uri) is None, what="the end")


def claim(s3_env: S3Env, number: int) -> None:
    store = open_store(s3_env.uri, environment=s3_env.environment)
    ensure_run(store)
    store.create(claim_key(number), Claim(number, "nonce", 0.0, Holder(host=f"host {number}")).to_bytes())


def wake(clock: Turned, proxy: Proxy) -> None:
    clock.ahead_s += SLEPT_S
    proxy.bytes_per_s = None


@pytest.mark.fault(55)
def test_what_was_under_way_is_given_up_and_sent_again_if_nobody_came(run, s3_env, proxy, clock):
    wake(clock, proxy)
    committed = wait_until(lambda: run.token.last_committed, what="the commit")
    assert len(proxy.wait_for("PUT", r"/packs/.*safetensors")) >= 2, "its deadline passed while the machine slept"
    assert str(check(s3_env.uri, [committed])) == committed


@pytest.mark.fault(55)
@pytest.mark.fault(61)
def test_it_is_fenced_if_another_attempt_began_meanwhile(run, s3_env, proxy, clock):
    claim(s3_env, 2)
    wake(clock, proxy)
    wait_until(lambda: run.uploads.superseded, what="the news")
    assert run.token.last_committed is None
    assert s3_env.keys("run/snapshots/") == []
