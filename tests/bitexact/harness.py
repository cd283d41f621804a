"""Trains a case in processes of its own: once plainly, and once on a spot machine that is taken away again and again.

A kill is a SIGKILL to everything of that machine at once: trainer, private agent, DataLoader workers. They are found
by the runtime directory in their environment, which is new for each life, and so is the spool: the bucket survives.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bitexact.bucket import Bucket, Objects
from tests.bitexact.cases import CASES
from tests.bitexact.outcome import Dump
from tests.training.child import Child
from tests.training.forked import ROOT

WORKER = Path(__file__).with_name("worker.py")
PATIENCE_S = 120.0
"""For whatever a process is waited for: a machine may be busy with other tests."""

ENDED = "ended without releasing the run: its processes are gone"
"""What a start says when it need not wait until the heartbeat of the attempt before is stale."""

_FOREIGN = ("SPOTCKPT_", "SPOT_TEST_")


@dataclass(frozen=True)
class Options:
    """How a case is run on the spot machine.

    Attributes:
        every: the run's setting; as often as possible.
        delay_s: how long each batch lasts at least.
        open_run: enter by the context manager instead of the decorator.
        overlap: copy while the next forward and backward run, the smallest tensors too.
        environment: for every spot process.
    """

    every: str = "1 steps"
    delay_s: float = 0.02
    open_run: bool = False
    overlap: bool = False
    environment: dict[str, str] = field(default_factory=dict)


class Life:
    """One process of the spot training, with a runtime directory and a spool of its own."""

    def __init__(self, number: int, folder: Path, options: list[str], environment: dict[str, str]) -> None:
        self.number, self.folder = number, folder
        self.runtime = folder / "runtime"
        self._trace = folder / "trace.json"
        for path in (self.runtime, folder / "spool"):
            path.mkdir(parents=True, mode=0o700)
        own = {"SPOTCKPT_RUNTIME_DIR": self.runtime, "SPOTCKPT_SPOOL": folder / "spool", "SPOT_TEST_TRACE": self._trace}
        environment = environment | {name: str(path) for name, path in own.items()}
        # the first one has hashes of its own: no order of a set that is in a snapshot may matter
        self.process = Child(WORKER, options, environment, folder / "output", exec_python=number == 1)

    @property
    def said(self) -> str:
        """What it wrote."""
        return (self.folder / "output").read_text(errors="replace")

    @property
    def trace(self) -> dict[str, Any] | None:
        """Where its training went on; None until it has begun a batch."""
        return json.loads(self._trace.read_text()) if self._trace.exists() else None

    @property
    def went_on_in_mid_epoch(self) -> bool:
        """Whether its first batch was neither the training's first nor the first of an epoch."""
        return self.trace is not None and self.trace["resumed_from"] is not None and self.trace["batch"] > 0

    def members(self) -> dict[int, str]:
        """The command line of every living process of this machine, by pid."""
        mark = f"SPOTCKPT_RUNTIME_DIR={self.runtime}\0".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (self._is_trainers(entry) or mark in (entry / "environ").read_bytes()):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended, or it is not ours
                continue
        return found

    def _is_trainers(self, process: Path) -> bool:
        """Whether it is of the trainer's session, and lives. What is forked shows the environment of its parent."""
        state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        return int(session) == self.process.pid and state not in "ZX"

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Polls until the condition holds; the process must not end before."""
        until = time.monotonic() + PATIENCE_S
        while not condition():
            status = self.process.status
            assert status is None, f"ended with {status} before {what}:\n{self.said}"
            assert time.monotonic() < until, f"no {what} within {PATIENCE_S:.0f} s:\n{self.said}"
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL to all of the machine, until nothing is left of it."""
        members = self.members()
        status = self.process.status
        assert status is None, f"ended with {status} before it could be killed:\n{self.said}"
        assert any("spotckpt.agent" in line for line in members.values()), f"no agent to kill: {members}"
        while members:
            for pid in members:
                _kill(pid)
            self.process.wait(PATIENCE_S)
            members = self.members()

    def go(self) -> None:
        """Lets it train on where it holds."""
        self._trace.with_suffix(".json.go").touch()

    def finish(self) -> None:
        """Waits for the end of the training, which must be a good one."""
        self.go()
        status = self.process.wait(PATIENCE_S)
        assert status is not None, f"did not finish within {PATIENCE_S:.0f} s:\n{self.said}"
        assert status == 0, f"ended with {status}:\n{self.said}"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Trial:
    """A case, its plain training and its spot training.

    Args:
        case: its name.
        objects: where the spot training's run lives.
        folder: for everything else.
        seed: of the kills; printed.
        options: of the spot processes.
    """

    def __init__(self, case: str, objects: Objects, folder: Path, *, seed: int, options: Options | None = None) -> None:
        self.case, self.folder = case, folder
        self.options = options or Options()
        self.bucket = Bucket(objects)
        self.num_batches = CASES[case].num_batches
        self.lives: list[Life] = []
        self.chance = random.Random(seed)
        print(f"{case}: seed {seed}, {objects.uri}")  # pytest shows it when the test fails

    def train_plainly(self) -> Dump:
        """The reference: one process, no spotckpt."""
        output = self.folder / "plain.output"
        options = self._options("plain", self.folder / "plain")
        status = Child(WORKER, options, _environment({}), output, exec_python=False).wait(PATIENCE_S)
        assert status == 0, output.read_text()
        return Dump.read(self.folder / "plain")

    def train_on_spot(self, *, kills: int = 3) -> Dump:
        """Takes the machine away at random moments all over the training, and once at least in mid-epoch."""

        def hold() -> str:
            """The step at which the next life waits for its kill: past where that may come, past the hold before."""
            begun = len(self.lives) + 1
            return str(round(min(begun, kills) / (kills + 1) * self.num_batches) + 2 * begun)

        life = self.start(SPOT_TEST_HOLD=hold())
        while len(self.lives) <= kills or not any(life.went_on_in_mid_epoch for life in self.lives):
            assert len(self.lives) < kills + 4, "never resumed in mid-epoch"
            share = min(len(self.lives) - 1 + self.chance.random(), kills) / (kills + 1)
            self.wait_for_commit(life, round(share * self.num_batches))
            time.sleep(self.chance.uniform(0, 2 * self.options.delay_s))
            life = self.replace(life, SPOT_TEST_HOLD=hold())
        return self.finish(life)

    def start(self, **environment: str) -> Life:
        """A new process on a new machine; all but the first are built from another seed than the plain training's."""
        number = len(self.lives) + 1
        own = {"SPOT_TEST_DELAY": str(self.options.delay_s), "SPOT_TEST_SEED": str(6 + number)}
        options = self._options("spot", self.folder / "spot")
        options += ["--uri", self.bucket.uri, "--every", self.options.every]
        options += [*["--open-run"] * self.options.open_run, *["--overlap"] * self.options.overlap]
        environment = _environment(self.options.environment | own | environment)
        self.lives.append(Life(number, self.folder / f"life{number}", options, environment))
        return self.lives[-1]

    def replace(self, life: Life, **environment: str) -> Life:
        """Takes the machine away and starts on another one, which must go on from the newest commit or a later one."""
        newest = max(self.bucket.snapshots(), default=None)
        life.kill()
        heir = self.start(**environment)
        heir.wait_for(lambda: ENDED in heir.said, "word that the attempt before is known to be dead, not just silent")
        heir.wait_for(lambda: heir.trace is not None, "first batch")
        base = self.bucket.base(self.bucket.attempts()[-1])
        assert newest is None or (base is not None and base >= newest), f"{newest} was committed, resumed from {base}"
        assert heir.trace is not None and heir.trace["step"] == (base.step if base else 0), f"{heir.trace} from {base}"
        return heir

    def wait_for_commit(self, life: Life, step: int) -> None:
        """Until it has committed a snapshot itself, and one of that step or a later one is there."""
        life.wait_for(lambda: self._has_committed(life, step), f"commit of step {step}")

    def finish(self, life: Life) -> Dump:
        """Lets it train to its end, and returns what it left behind."""
        life.finish()
        return Dump.read(self.folder / "spot")

    def _has_committed(self, life: Life, step: int) -> bool:
        newest = max(self.bucket.snapshots(), default=None)
        return newest is not None and newest.attempt == life.number and newest.step >= step

    def _options(self, mode: str, out: Path) -> list[str]:
        return [self.case, mode, "--out", str(out)]


def _environment(own: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return kept | {"PYTHONPATH": str(ROOT)} | own
