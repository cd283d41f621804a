"""Only what is asked for is downloaded, and no more memory is used than the state needs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import spotckpt
from tests.support.proxy import Proxy
from tests.support.servers import S3Env
from tests.training.forked import ROOT
from tests.training.machine import Machine, machine

MIB = 1 << 20
STATE = 96
"""MiB of weights, and as much of momentum."""


@pytest.fixture
def here(s3_env: S3Env) -> Iterator[Machine]:
    with machine(s3_env.environment) as found:
        yield found


def asked_for(proxy: Proxy) -> int:
    """Bytes of packs that were asked for."""
    total = 0
    for seen in proxy.seen:
        if seen.method == "GET" and ".safetensors" in seen.path:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers["range"])
            assert found is not None
            total += int(found[2]) + 1 - int(found[1])
    return total


def test_only_the_bytes_of_the_objects_wanted(here: Machine, s3_env: S3Env, monkeypatch: pytest.MonkeyPatch) -> None:
    here.train(s3_env.uri, "--every=1h", "--epochs=1")
    for only, names in (("model", {"model"}), ("extra", {"extra"}), (None, {"model", "optimizer", "extra", "vars"})):
        with Proxy(s3_env.url) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
            states = spotckpt.load(s3_env.uri, only=only)
            assert set(states) == names
            weights = states.get("model", {}).values()
            moments = [value["momentum_buffer"] for value in states.get("optimizer", {"state": {}})["state"].values()]
            assert asked_for(proxy) == sum(tensor.nbytes for tensor in [*weights, *moments])


SCRIPT = """
import sys, torch, spotckpt
from pathlib import Path

def high_water_mib():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

uri, width, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
model = torch.nn.ParameterList([torch.ones(width, 1024, dtype=dtype) for _ in range(4)])
optimizer = torch.optim.SGD(model, lr=0.5, momentum=0.9)
with spotckpt.open_run(uri, every="1h") as run:
    before = high_water_mib()
    run.track(model=model, optimizer=optimizer)
    if run.resumed_from is not None:
        print(high_water_mib() - before)
    for _ in run.steps(1):
        for parameter in model:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
"""


def test_peak_memory_is_the_state_and_bounded_buffers(here: Machine, tmp_path: Path) -> None:
    def run(kind: str) -> str:
        width = STATE * MIB // 4 // 4 // 1024
        command = [sys.executable, "-c", SCRIPT, f"file://{tmp_path}/run", str(width), kind]
        done = subprocess.run(command, env=here.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("float32")
    for dtype, buffers in (("float32", 0), ("float64", 128)):
        # the weights are there before; of the momentum there is nothing yet
        assert float(run(dtype)) < STATE + buffers + 40, dtype
