"""`agent`, `status` and `notify` against a real agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spotckpt.agent.client import Client
from spotckpt.errors import AgentError
from tests.cli.command import in_process, spotckpt
from tests.support.servers import wait_until


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A running `spotckpt agent`, which this process and its children find."""
    monkeypatch.setenv("SPOTCKPT_RUNTIME_DIR", str(tmp_path / "rt"))
    monkeypatch.setenv("SPOTCKPT_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with (tmp_path / "agent.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "spotckpt", "agent"], stdout=log, stderr=log)
    try:
        # the file is there a moment before anybody listens
        wait_until(lambda: in_process("status").status == 0, timeout_s=60, what="the agent's answer")
        yield process
    finally:
        process.kill()
        process.wait(30)


def status() -> dict:
    done = in_process("status", "--json")
    assert (done.status, done.err) == (0, "")
    found: dict = json.loads(done.out)
    return found


def test_status_of_an_idle_agent(agent):
    found = status()
    assert found["agent"]["pid"] == agent.pid
    assert (found["notices"], found["runs"]) == ([], [])
    shown = spotckpt("status")
    assert (shown.status, shown.err) == (0, "")
    assert f"agent {agent.pid}" in shown.out
    assert "no run is open" in shown.out


def test_status_of_an_open_run(agent, tmp_path, local_root):
    with Client.connect(tmp_path / "rt" / "agent.sock") as client:
        opened = client.call("open", timeout=30, uri=local_root, selector="newest", settings={}, environment={})
        assert opened["attempt"] == 1
        client.call("base", timeout=30, uri=local_root, snapshot=None, selector="newest", consumed=[], skipped=[])
        [run] = status()["runs"]
        assert (run["uri"], run["attempt"], run["trainer_pid"]) == (local_root, 1, os.getpid())
        shown = in_process("status").out
        for words in (local_root, "1, training", f"process {os.getpid()}", "nothing yet"):
            assert words in shown
        client.call("close", timeout=30, uri=local_root, deadline_s=10)


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate", "rebalance"])
def test_notify_reaches_the_trainers(agent, tmp_path, action):
    events: list[dict] = []
    with Client.connect(tmp_path / "rt" / "agent.sock", on_event=events.append):
        expected = f"the agent tells its trainers: {action} in 50 s; take it back with: spotckpt notify --clear\n"
        assert in_process("notify", action, "--in", "50").out == expected
        wait_until(lambda: events, what="the notice")
    assert (events[0]["kind"], events[0]["action"]) == ("manual", action)
    assert 40 < events[0]["seconds_left"] <= 50
    assert f"manual {action} in" in in_process("status").out


def test_notify_can_be_taken_back(agent):
    assert in_process("notify").status == 0
    [notice] = status()["notices"]
    assert (notice["action"], notice["seconds_left"]) == ("terminate", None)
    assert in_process("notify", "--clear").status == 0
    assert status()["notices"] == []


def test_a_second_agent_says_so(agent, tmp_path):
    done = spotckpt("agent")
    assert done.status == 45
    assert str(tmp_path / "rt") in done.err
    assert "spotckpt status" in done.err
    assert status()["agent"]["pid"] == agent.pid


def test_sigterm_ends_the_agent(agent, tmp_path):
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(30) == 0
    assert not (tmp_path / "rt" / "agent.sock").exists()
    with pytest.raises(AgentError):
        Client.connect(tmp_path / "rt" / "agent.sock")


def test_the_agent_never_loads_torch(agent):
    """The process that really runs, by what it has mapped; numpy's and torch's libraries would show."""
    maps = Path(f"/proc/{agent.pid}/maps").read_text()
    assert "libpython" in maps or "python" in maps
    assert "/torch/" not in maps
