"""The work that an interruption cost is told by whoever goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import wait_until
from tests.training.machine import Bucket, Machine, machine


def status(here: Machine, *options: str) -> str:
    command = [sys.executable, "-m", "spotckpt", "status", f"--runtime-dir={here.runtime}", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_machine_is_gone_three_steps_after_the_last_commit(here: Machine, tmp_path: Path) -> None:
    bucket = Bucket(f"file://{tmp_path}/run")
    options = ("--every=5 steps", "--stale-after=1s", "--act=spin", "--delay=0.02")
    first = here.start(bucket.uri, *options, "--at=8")
    first.wait_for("spinning")
    wait_until(bucket.manifests, what="the snapshot of step 5")
    # as many heartbeats come as the time-out asks for: the last one has seen the eighth boundary
    beat = "attempts/0001.heartbeat.json"
    wait_until(lambda: (bucket.record(beat)["reached"] or {}).get("step") == 8, what="a heartbeat after step 8")
    running = json.loads(status(here, "--json"))["runs"][0]
    assert running["unsaved"]["steps"] == 3 and 0 < running["unsaved"]["seconds"] < 60
    assert running["lost"] is None
    here.stop(here.agent_pid())
    first.signal(signal.SIGKILL)
    first.wait()
    os.kill(here.agent_pid(), signal.SIGKILL)
    with machine() as elsewhere:
        second = elsewhere.start(bucket.uri, *options, "--at=9")
        second.wait_for("spinning")
        found = json.loads(status(elsewhere, "--json"))["runs"][0]["lost"]
        assert found["steps"] == 3 and found["seconds"] == pytest.approx(running["unsaved"]["seconds"], abs=0.1)
        assert "last interruption cost" in status(elsewhere) and "3 steps, " in status(elsewhere)
        second.go()
        assert second.wait() == 0, second.said
    by_attempt = {manifest["snapshot"][:5]: manifest["lost"] for manifest in bucket.manifests()}
    assert by_attempt == {"a0001": None, "a0002": found}


def test_the_same_command_line_after_going_back_tells_its_loss(here: Machine, bucket: Bucket) -> None:
    dies = ("--every=5 steps", "--act=os_exit")
    here.train(bucket.uri, *dies, "--at=8", status=9)
    wait_until(lambda: bucket.released(1), what="the release of the first attempt")
    here.train(f"{bucket.uri}@step=5", *dies, "--at=9", status=9)
    wait_until(lambda: bucket.released(2), what="the release of the second attempt")
    here.train(f"{bucket.uri}@step=5", "--every=5 steps")
    assert {m["snapshot"][:5]: m["lost"] and m["lost"]["steps"] for m in bucket.manifests()} == {
        "a0001": None,
        "a0003": 4,
    }
