"""The S3 server is killed in the middle of a run: what it acknowledged is there, and the training comes through."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support.checker import check
from tests.support.servers import S3Env, Seaweed, wait_until
from tests.training.machine import Bucket, Machine, machine


@pytest.fixture
def here(seaweed_env: S3Env) -> Iterator[Machine]:
    with machine(seaweed_env.environment) as found:
        yield found


@pytest.fixture
def there(seaweed_env: S3Env) -> Iterator[Machine]:
    with machine(seaweed_env.environment) as found:
        yield found


def committed(bucket: Bucket) -> list[str]:
    return [manifest["snapshot"] for manifest in bucket.manifests()]


def test_a_training_outlives_the_server(here: Machine, seaweed: Seaweed, seaweed_env: S3Env, plain: str) -> None:
    bucket = Bucket(seaweed_env.uri)
    trainer = here.start(bucket.uri, "--save-in=1", "--at=4", "--act=spin")
    trainer.wait_for("spinning")
    wait_until(lambda: len(committed(bucket)) >= 2, what="two snapshots")
    before = committed(bucket)
    seaweed.kill()
    trainer.go()
    trainer.wait_for("step 9")
    assert trainer.status is None
    seaweed.start()
    assert trainer.wait() == 0, trainer.said
    assert trainer.end == plain
    assert committed(bucket)[: len(before)] == before
    assert str(check(bucket.uri, before)) == committed(bucket)[-1]
    assert bucket.manifests()[-1]["finished"]


def test_server_and_machine_die_together(
    here: Machine, there: Machine, seaweed: Seaweed, seaweed_env: S3Env, plain: str
) -> None:
    bucket = Bucket(seaweed_env.uri)
    trainer = here.start(bucket.uri, "--save-in=1", "--at=4", "--act=spin")
    trainer.wait_for("spinning")
    wait_until(lambda: len(committed(bucket)) >= 2, what="two snapshots")
    before = committed(bucket)
    seaweed.kill()
    trainer.signal(signal.SIGKILL)
    here.kill_agent()
    seaweed.start()
    assert check(bucket.uri, before) is not None
    after = there.train(bucket.uri)
    assert "resumed" in after.said
    assert after.end == plain
