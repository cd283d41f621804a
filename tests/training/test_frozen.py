"""A model most of whose weights are frozen: they are uploaded once, and stay where they are over lives and machines."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

import spotckpt
from tests.support.checker import check
from tests.support.servers import S3Env, wait_until
from tests.training.machine import Bucket, Machine, machine

OPTIONS = ("--frozen=4000000", "--width=16000")  # 16 MB, and 0.8 MB that change
SAVED = ("--save-in=2", "--save-in=7")
MIB = 1 << 20


@pytest.fixture
def here(seaweed_env: S3Env) -> Iterator[Machine]:
    with machine(seaweed_env.environment) as found:
        yield found


@pytest.fixture
def there(seaweed_env: S3Env) -> Iterator[Machine]:
    with machine(seaweed_env.environment) as found:
        yield found


def test_the_second_snapshot_uploads_what_changed_and_so_does_the_first_of_the_next_life(
    here: Machine, there: Machine, seaweed_env: S3Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed_env.environment.items():
        monkeypatch.setenv(name, value)
    plain, bucket = Bucket(f"{seaweed_env.uri}-plain"), Bucket(seaweed_env.uri)
    end = there.train(plain.uri, *OPTIONS, "--every=1h").end
    first = here.start(bucket.uri, *OPTIONS, *SAVED, "--at=5", "--act=hold")
    first.wait_for("holding")
    wait_until(lambda: len(bucket.manifests()) >= 2, what="the one that was asked for, and another")
    first.signal(signal.SIGKILL)
    here.kill_agent()
    second = there.train(bucket.uri, *OPTIONS, *SAVED)
    assert "resumed" in second.said and second.steps[0] > 0
    assert second.end == end

    manifests = bucket.manifests()
    lives = [[m for m in manifests if m["snapshot"].startswith(f"a{attempt:04d}")] for attempt in (1, 2)]
    assert len(lives[0]) >= 2 and len(lives[1]) >= 2
    assert lives[0][0]["uploaded_bytes"] > manifests[0]["data_bytes"] > 16_000_000
    for manifest in manifests[1:]:
        assert manifest["uploaded_bytes"] <= 0.05 * manifest["data_bytes"] + MIB, manifest["snapshot"]
        assert any(manifests[0]["snapshot"] in pack["key"] for pack in manifest["packs"])
        assert manifest["uploaded_bytes"] > 700_000 or manifest["reason"] == "final", "it does train"
    assert str(check(bucket.uri, [m["snapshot"] for m in manifests])) == manifests[-1]["snapshot"]

    restored, expected = (spotckpt.load(one.uri) for one in (bucket, plain))
    assert restored["model"].keys() == expected["model"].keys()
    assert all(torch.equal(restored["model"][name], tensor) for name, tensor in expected["model"].items())
