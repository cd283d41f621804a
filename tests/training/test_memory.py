"""A state that fits into memory once, and hardly more: slots go to the disk, and there is no second copy."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from spotckpt.agent.room import is_memory
from tests.support.cgroups import MemoryGroup, memory_group
from tests.training.forked import ROOT
from tests.training.machine import machine

MIB = 1 << 20
BASE = 400 * MIB  # two interpreters, one with torch
SCRIPT = Path(__file__).with_name("scripts") / "large.py"


def train(group: MemoryGroup, environment: dict[str, str], uri: str, mebibytes: int, steps: int) -> tuple[str, str]:
    """What the training printed, and what it said."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), uri, str(mebibytes), str(steps)],
        env=environment,
        preexec_fn=group.enter,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}, {group.killed} killed:\n{done.stderr}"
    return done.stdout, done.stderr


@pytest.mark.fault(26)
def test_a_state_is_saved_and_restored_with_little_memory_besides(tmp_path: Path) -> None:
    mebibytes = int(os.environ.get("SPOT_TEST_STATE_MIB", "512"))
    besides = int(os.environ.get("SPOT_TEST_BESIDES_MIB", "256"))
    if not is_memory(Path("/dev/shm")):
        pytest.skip("there is no tmpfs at /dev/shm")
    uri = f"file://{tmp_path}/run"
    with (
        memory_group(mebibytes * MIB + besides * MIB + BASE) as group,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="spotckpt-test-") as spool,
        machine() as here,
    ):
        environment = {**here.environment, "SPOTCKPT_SPOOL": spool, "PYTHONPATH": str(ROOT)}
        saved, said = train(group, environment, uri, mebibytes, 3)
        assert "staged on disk" in said
        assert spool in said
        restored, _ = train(group, environment, uri, mebibytes, 4)
        assert restored.splitlines()[0] == saved.strip().replace("ended", "resumed")
        assert group.killed == 0
        print(f"peak {group.peak_bytes / MIB:.0f} MiB of {(mebibytes * MIB + besides * MIB + BASE) / MIB:.0f} MiB")
