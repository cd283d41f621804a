"""Trainings whose surroundings go wrong: deadlines too short, a busy machine, a dead worker, a clock that runs back."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spotckpt.training.session import START_TIMEOUT_S
from tests.support.checker import check
from tests.support.proxy import Proxy
from tests.support.servers import S3Env, wait_until
from tests.training.forked import ROOT
from tests.training.machine import Bucket, Machine

STEPS = 10
HOGS = 64
GRACE_S = 10.0


@pytest.mark.fault(3)
def test_sigterm_amid_an_upload_that_is_too_long_is_abandoned_by_the_deadline(here: Machine, s3_env: S3Env) -> None:
    bucket = Bucket(s3_env.uri)
    with Proxy(s3_env.url, bytes_per_s=50_000.0) as proxy:
        here.environment.update(s3_env.behind(proxy.url).environment)
        trainer = here.start(bucket.uri, "--frozen=500000", "--at=3", "--act=spin", "--sigterm-grace=2s")
        trainer.wait_for("spinning")
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        trainer.signal(signal.SIGTERM)
        trainer.wait_to_say("SIGTERM")
        trainer.go()
        assert trainer.wait() == 75
        assert bucket.manifests() == [], "the upload was over too soon to show anything"
        assert "is not uploaded yet; the agent goes on as long as the machine lives" in trainer.said
        assert check(bucket.uri, []) is None
        proxy.bytes_per_s = None
        wait_until(lambda: bucket.released(1), timeout_s=60, what="the release")
    [last] = bucket.manifests()[-1:]
    assert str(check(bucket.uri, [last["snapshot"]])) == last["snapshot"]


@pytest.mark.fault(5)
def test_amid_a_long_native_call_what_is_sealed_goes_without_the_main_thread(here: Machine, bucket: Bucket) -> None:
    """Uploads are rare here, until SIGTERM makes one urgent."""
    trainer = here.start(bucket.uri, "--upload-every=1h", "--at=4", "--act=native")
    trainer.wait_for("in C")
    trainer.signal(signal.SIGTERM)
    wait_until(lambda: any(manifest["step"] == 4 for manifest in bucket.manifests()), what="the snapshot of step 4")
    assert "back" not in trainer.trace, "the main thread came to its handler first"
    trainer.go()
    assert trainer.wait() == 75
    assert [manifest["reason"] for manifest in bucket.manifests()][-1] == "notice"


@pytest.mark.fault(12)
def test_a_loader_s_worker_that_dies_during_a_save_costs_the_training_and_not_the_snapshot(
    here: Machine, bucket: Bucket, plain: str
) -> None:
    failed = here.train(bucket.uri, "--workers=1", "--at=3", "--act=bereave", exec_python=True, status=1)
    assert "bereaved" in failed.trace and failed.steps[-1] == 3
    assert "DataLoader worker" in failed.said and "is killed by signal" in failed.said
    assert bucket.manifests()[-1]["step"] == 4, "the one that was being taken"
    assert bucket.released(1)
    resumed = here.train(bucket.uri)
    assert resumed.steps == list(range(4, STEPS))
    assert resumed.end == plain


@contextmanager
def hogs() -> Iterator[None]:
    """Many more processes than cores that never wait."""
    found = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(HOGS)]
    try:
        yield
    finally:
        for hog in found:
            hog.kill()
        for hog in found:
            hog.wait()


@pytest.mark.fault(85)
def test_with_64_hogs_on_the_machine_the_deadline_is_kept(here: Machine, bucket: Bucket) -> None:
    trainer = here.start(bucket.uri, "--at=4", "--act=spin", f"--sigterm-grace={GRACE_S - 1}s")
    trainer.wait_for("spinning")
    wait_until(lambda: [m for m in bucket.manifests() if m["step"] == 4], what="the snapshot of step 4")
    with hogs():
        trainer.signal(signal.SIGTERM)
        trainer.go()
        wait_until(lambda: trainer.status is not None, timeout_s=GRACE_S, what=f"the end: {trainer.said}")
        assert trainer.status == 75, trainer.said
    newest = bucket.manifests()[-1]
    assert newest["step"] >= 4
    assert str(check(bucket.uri, [newest["snapshot"]])) == newest["snapshot"]


BACKWARDS = """
import time
time.time = lambda: 1.7e9 - 100.0 * time.monotonic()
"""


@pytest.mark.fault(53)
def test_a_clock_that_runs_backwards_changes_no_order(
    here: Machine, bucket: Bucket, plain: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BACKWARDS)
    backwards = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    here.train(bucket.uri, "--backwards", "--at=5", "--act=os_exit", "--delay=0.1", env=backwards, status=9)
    assert here.train(bucket.uri, "--backwards", env=backwards).end == plain
    manifests = bucket.manifests()
    created = [manifest["created"] for manifest in manifests]
    assert created == sorted(created, reverse=True) and len(set(created)) > 1, "the clock went as usual"
    steps = [manifest["step"] for manifest in manifests]
    assert steps == sorted(steps) and manifests[-1]["finished"]
    assert str(check(bucket.uri, [manifests[-1]["snapshot"]])) == manifests[-1]["snapshot"]


SLOW = """
import sys, time
if "spotckpt.agent" in sys.orig_argv:
    time.sleep(60)
"""


@pytest.mark.fault(3)
def test_sigterm_while_an_agent_is_started_does_not_wait_for_it(here: Machine, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    trainer = here.start(bucket.uri, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    wait_until((here.runtime / "agent.log").exists, what="the start of an agent")
    trainer.signal(signal.SIGTERM)
    wait_until(lambda: trainer.status is not None, timeout_s=START_TIMEOUT_S - 5, what="the end, without the agent")
    assert trainer.status == 75
    assert "before the training began" in trainer.said
    assert not (here.runtime / "agent.sock").exists()
