"""Real agents and fake trainers as processes, for the tests of this room."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spotckpt.agent.client import Client
from tests.support.servers import wait_until

ROOT = Path(__file__).resolve().parents[2]
STALE_S = 2.0
"""For attempts whose machine is dead: one that lives may be held up for longer on a busy machine."""
PATIENT_S = 5.0
"""For those that must be seen to live."""
WAIT_S = 60.0
"""For all that must come; only what fails takes so long."""
HELD_BYTES_PER_S = 50_000.0
"""A line on which an upload of megabytes is under way until the test makes it faster."""


class Process:
    """A child of this test, ended with it."""

    def __init__(self, command: list[str], environment: Mapping[str, str], *, log: Path) -> None:
        self.log = log
        with log.open("ab") as stream:
            self.popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        self.pid = self.popen.pid

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(WAIT_S)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        return self.popen.wait(timeout_s)

    @property
    def log_text(self) -> str:
        return self.log.read_text()

    def end(self) -> None:
        if self.popen.poll() is None:
            self.send(signal.SIGCONT)
            self.kill()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None:
                stream.close()


class Trainer(Process):
    """The fake trainer, and all that it said."""

    def __init__(self, environment: Mapping[str, str], *, log: Path, under: Sequence[str] = ()) -> None:
        super().__init__([*under, sys.executable, "-m", "tests.agent.fake_trainer"], environment, log=log)
        self.said: list[dict[str, Any]] = []
        self._tags = itertools.count(1)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.hello = self.reply(0)

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.said.append(json.loads(line))

    def start(self, do: str, **fields: Any) -> int:
        """Gives a command and returns its tag."""
        tag = next(self._tags)
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps({"tag": tag, "do": do, **fields}) + "\n")
        self.popen.stdin.flush()
        return tag

    def answer(self, tag: int, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """All that came back for the tag: with `reply`, or with `error`."""

        def found() -> dict[str, Any] | None:
            return next((line for line in list(self.said) if line.get("tag") == tag), None)

        line: dict[str, Any] = wait_until(found, timeout_s=timeout_s, what=f"answer {tag} of {self.log_text}")
        return line

    def reply(self, tag: int, timeout_s: float = WAIT_S) -> dict[str, Any]:
        line = self.answer(tag, timeout_s)
        assert "reply" in line, line
        reply: dict[str, Any] = line["reply"]
        return reply

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.reply(self.start("call", op=op, fields=fields))

    def open(self, uri: str, **fields: Any) -> dict[str, Any]:
        """Opens the run and records that it starts from scratch, or from `snapshot`."""
        return self.settle(self.start_open(uri, **fields), uri)

    def start_open(self, uri: str, **fields: Any) -> int:
        settings = {"stale_after_s": STALE_S, "call_timeout_s": WAIT_S}
        return self.start("call", op="open", fields={"uri": uri, "selector": "", "settings": settings, **fields})

    def settle(self, tag: int, uri: str, *, snapshot: str | None = None) -> dict[str, Any]:
        reply = self.reply(tag)
        self.call("base", uri=uri, snapshot=snapshot, selector="newest", consumed=[], skipped=[])
        return reply

    def stage(self, uri: str, step: int, **fields: Any) -> dict[str, Any]:
        return self.reply(self.start("stage", uri=uri, step=step, **fields))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in list(self.said) if line.get("event") == name]

    def wait_event(self, name: str, matches: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            return next((event for event in self.events(name) if matches(event)), None)

        event: dict[str, Any] = wait_until(found, what=f"event {name} among {self.said}")
        return event

    def wait_committed(self, snapshot: str) -> None:
        self.wait_event("committed", lambda event: event["id"] == snapshot)


class Machine:
    """A runtime directory, a spool, and the processes that use them."""

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self.path = path
        self.runtime, self.spool = path / "run", path / "spool"
        self.environment = {
            "AWS_EC2_METADATA_DISABLED": "true",
            **environment,
            "SPOTCKPT_RUNTIME_DIR": str(self.runtime),
            "SPOTCKPT_SPOOL": str(self.spool),
        }
        self.processes: list[Process] = []
        path.mkdir(parents=True, exist_ok=True)

    def agent(self, *options: str, **environment: str) -> Process:
        """Starts an agent and returns when it answers."""
        agent = self.start_agent(*options, **environment)
        self.wait_for(agent)
        return agent

    def start_agent(self, *options: str, **environment: str) -> Process:
        command = [sys.executable, "-m", "spotckpt.agent", "--verbose", "--reserve-mb=0", "--poll-interval=0.2"]
        command += [f"--disk-dir={self.path / 'disk'}", *options]
        agent = Process(command, {**self.environment, **environment}, log=self.path / "agent.log")
        self.processes.append(agent)
        return agent

    def wait_for(self, agent: Process) -> None:
        wait_until(lambda: f"agent {agent.pid} serves" in agent.log_text, what=f"an agent: {agent.log_text}")

    def trainer(self, *, under: Sequence[str] = (), **environment: str) -> Trainer:
        """Starts a trainer, with `under` as the arguments of another command."""
        name = f"trainer-{len(self.processes)}.log"
        trainer = Trainer({**self.environment, **environment}, log=self.path / name, under=under)
        self.processes.append(trainer)
        return trainer

    def client(self) -> Client:
        return Client.connect(self.runtime / "agent.sock", timeout=WAIT_S)

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            return client.call("status", timeout=WAIT_S)

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.status()["runs"]
        return found

    def wait_at_rest(self) -> None:
        """Until its one run sends nothing, and no slot holds anything but its newest snapshot: then a slot is free."""

        def at_rest() -> bool:
            (run,) = self.runs()
            states = [slot["state"] for slot in run["slots"]]
            return run["uploading"] is None and "leased" not in states and states.count("sealed") <= 1

        wait_until(at_rest, what="a free slot")

    def tokens(self) -> list[Path]:
        return sorted(self.spool.glob("*/token.json"))

    def end(self) -> None:
        for process in reversed(self.processes):
            process.end()


@contextmanager
def machine(path: Path, environment: Mapping[str, str] | None = None) -> Iterator[Machine]:
    made = Machine(path, environment or {})
    try:
        yield made
    finally:
        made.end()


def wait_committed(root: Path, attempt: int, snapshot: str) -> None:
    """Until the attempt's heartbeat tells of that snapshot, after which its slot is freed."""
    wait_until(lambda: heartbeat(root, attempt)["last_committed"] == snapshot, what=f"a heartbeat with {snapshot}")


def heartbeat(root: Path, attempt: int) -> dict[str, Any]:
    """The attempt's heartbeat in a run on local files."""
    body: dict[str, Any] = json.loads((root / f"attempts/{attempt:04d}.heartbeat.json").read_bytes())["body"]
    return body
