"""`agent`, `status` and `notify` against a real agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from spotckpt.agent.client import Client
from spotckpt.errors import AgentError
from tests.cli.command import in_process, spotckpt
from tests.support.servers import wait_until


@dataclass
class Agent:
    process: subprocess.Popen[bytes]
    runtime_dir: Path

    @property
    def socket(self) -> Path:
        return self.runtime_dir / "agent.sock"


@contextmanager
def running_agent(folder: Path) -> Iterator[Agent]:
    """A `spotckpt agent`, which this process and its children find."""
    with pytest.MonkeyPatch.context() as patch, (folder / "agent.log").open("wb") as log:
        patch.setenv("SPOTCKPT_RUNTIME_DIR", str(folder / "rt"))
        patch.setenv("SPOTCKPT_SPOOL", str(folder / "spool"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        process = subprocess.Popen([sys.executable, "-m", "spotckpt", "agent"], stdout=log, stderr=log)
        try:
            # the file is there a moment before anybody listens
            wait_until(lambda: in_process("status").status == 0, timeout_s=60, what="the agent's answer")
            yield Agent(process, folder / "rt")
        finally:
            process.kill()
            process.wait(60)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """For all tests, which leave it as they found it."""
    with running_agent(tmp_path_factory.mktemp("agent")) as started:
        yield started


def status() -> dict:
    done = in_process("status", "--json")
    assert (done.status, done.err) == (0, "")
    found: dict = json.loads(done.out)
    return found


def test_status_of_an_idle_agent(agent):
    found = status()
    assert found["agent"]["pid"] == agent.process.pid
    assert (found["notices"], found["runs"]) == ([], [])
    shown = spotckpt("status")
    assert (shown.status, shown.err) == (0, "")
    assert f"agent {agent.process.pid}" in shown.out
    assert "no run is open" in shown.out


def test_status_of_an_open_run(agent, local_root):
    with Client.connect(agent.socket) as client:
        opened = client.call("open", timeout=60, uri=local_root, selector="newest", settings={}, environment={})
        assert opened["attempt"] == 1
        client.call("base", timeout=60, uri=local_root, snapshot=None, selector="newest", consumed=[], skipped=[])
        [run] = status()["runs"]
        assert (run["uri"], run["attempt"], run["trainer_pid"]) == (local_root, 1, os.getpid())
        shown = in_process("status").out
        for words in (local_root, "1, training", f"process {os.getpid()}", "nothing yet"):
            assert words in shown
        client.call("close", timeout=60, uri=local_root, deadline_s=30)


def test_notify_reaches_the_trainers(agent):
    events: list[dict] = []
    with Client.connect(agent.socket, on_event=events.append):
        for number, action in enumerate(("terminate", "stop", "hibernate", "rebalance"), 1):
            expected = f"the agent tells its trainers: {action} in 3000 s; take it back with: spotckpt notify --clear\n"
            assert in_process("notify", action, "--in", "3000").out == expected
            wait_until(lambda number=number: len(events) >= number, what="the notice")
            assert (events[-1]["kind"], events[-1]["action"]) == ("manual", action)
            assert 2000 < events[-1]["seconds_left"] <= 3000
            assert f"manual {action} in" in in_process("status").out
            assert in_process("notify", "--clear").status == 0


def test_notify_can_be_taken_back(agent):
    assert in_process("notify").status == 0
    [notice] = status()["notices"]
    assert (notice["action"], notice["seconds_left"]) == ("terminate", None)
    assert in_process("notify", "--clear").status == 0
    assert status()["notices"] == []


def test_a_second_agent_says_so(agent):
    done = spotckpt("agent")
    assert done.status == 45
    assert str(agent.runtime_dir) in done.err
    assert "spotckpt status" in done.err
    assert status()["agent"]["pid"] == agent.process.pid


def test_sigterm_ends_the_agent(tmp_path):
    with running_agent(tmp_path) as agent:
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(60) == 0
        assert not agent.socket.exists()
        with pytest.raises(AgentError):
            Client.connect(agent.socket)


def test_the_agent_never_loads_torch(agent):
    """The process that really runs, by what it has mapped; numpy's and torch's libraries would show."""
    maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert "libpython" in maps or "python" in maps
    assert "/torch/" not in maps
