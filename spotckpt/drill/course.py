"""What happens to a training in a drill: real processes, a real place for its snapshots, and interruptions."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from spotckpt.drill.diagnose import Told
from spotckpt.drill.machine import Machine
from spotckpt.drill.places import Place, describe
from spotckpt.drill.plan import Interruption, put_off
from spotckpt.drill.process import Child, wait_until
from spotckpt.drill.screen import Screen
from spotckpt.errors import DrillFailed, Interrupted
from spotckpt.snapshot.catalog import read_catalog
from spotckpt.training.witness import Life, Plan, read_life

RUN = "run"
"""The name of the interrupted run."""

NOTICE_S = 10.0
_SENDING_S = 3.0
"""How long an upload takes that is to be cut."""

_PATIENCE_S = 120.0
_SLOWER = 10.0
"""Within so many times the uninterrupted training's time every step must have come."""


@dataclass
class Course:
    """What all trainings of a drill share. Everything on it is gone after `course`, but for `kept`.

    Attributes:
        screen: where it is told.
        place: where the runs lie.
        work: a directory that vanishes.
        kept: where logs go.
        verbose: show what trainers and agents say.
        patience_s: how long to wait for one step of a training.
        state_bytes: the size of a snapshot; 0 while it is not known.
        happened: the interruptions so far.
    """

    screen: Screen
    place: Place
    work: Path
    kept: Path
    verbose: bool = False
    patience_s: float = _PATIENCE_S
    state_bytes: int = 0
    happened: list[Interruption] = field(default_factory=list)

    def uninterrupted(self, command: Sequence[str], *, name: str, probed: bool = True) -> Told:
        """Trains from beginning to end.

        Args:
            command: the training's.
            name: of the run, and of the log.
            probed: whether it is a training with spotckpt, whose probe writes down what it was like.

        Raises:
            DrillFailed: it ends with another status than 0, or its run is not finished.
        """
        folder = self._folder(name)
        began = time.monotonic()
        if probed:
            with self._machine(0) as machine:
                machine.train(command, uri=self.place.run_uri(name), folder=folder, life=name)
                status, child = machine.trainer.wait(None), machine.trainer
        else:
            child = Child(name, log_path=self.kept / f"trainer-{name}.log")
            try:
                child.start(command, environment=self.place.environment, on_line=lambda line: self._hear(name, line))
                status = child.wait(None)
            finally:
                child.kill()
        told = Told(read_life(folder), _printed(child.log_path))
        if status != 0 or (probed and not told.life.ended):
            raise _failed(f"the uninterrupted training ended with status {status}", child, told.life, probed=probed)
        self.patience_s = max(_PATIENCE_S, _SLOWER * (time.monotonic() - began))
        return told

    def measure(self, name: str) -> None:
        """Takes the size of a snapshot from a finished run."""
        sizes = [one.size_bytes for one in self.place.store(name).list("packs/")]
        self.state_bytes = max(sizes, default=0)

    def interrupted(self, command: Sequence[str], interruptions: Sequence[Interruption]) -> Iterator[Told]:
        """Trains, interrupts and starts again, until the training is over; yields each start when it has ended.

        Raises:
            DrillFailed: a start does not end as it should.
        """
        pending, number, start = list(interruptions), 0, 0
        machine: Machine | None = None
        try:
            while True:
                start += 1
                mine = _until_restart(pending)
                if machine is None or _cuts(mine):
                    if machine is not None:
                        machine.vanish()
                    number += 1
                    machine = self._boot(number, limited=_cuts(mine))
                told = self._live(machine, command, mine, start)
                del pending[: len(mine)]
                yield told
                if told.life.ended:
                    return
                pending = put_off(pending, after=told.life.last_step)
                if not mine[-1].keeps_disk:
                    machine.vanish()
                    machine = None
        finally:
            if machine is not None:
                machine.vanish()

    def bases(self) -> None:
        """Says what each attempt is recorded to have gone on from."""
        for attempt, base in sorted(read_catalog(self.place.store(RUN), everything=True).bases.items()):
            origin = f"continued from {base.snapshot}" if base.snapshot else "a new beginning"
            self.screen.say("bucket", f"attempt {attempt} is recorded as {origin}")

    # Inside

    def _live(self, machine: Machine, command: Sequence[str], mine: Sequence[Interruption], start: int) -> Told:
        """One start of the training, until it ends."""
        folder = self._folder(f"start-{start}")
        saves = tuple(step for one in mine for step in one.saves)
        holds = tuple(step for one in mine for step in (one.wait, one.hold) if step)
        slow_from = mine[-1].hold if mine and mine[-1].kind in ("notice", "sigterm") else None
        Plan(saves, holds, slow_from).write(folder)
        self.screen.say("drill", f"start {start}, on machine {machine.number}")
        machine.train(command, uri=self.place.run_uri(RUN), folder=folder, life=str(start))
        happened = [one for one in mine if self._interrupt(machine, folder, one)]
        self.happened += happened
        last = happened[-1] if happened and happened[-1].ends_life else None
        status = machine.trainer.wait(self.patience_s if last else None)
        told = Told(read_life(folder), _printed(machine.trainer.log_path))
        self._check(machine, last, told.life, start, status)
        return told

    def _check(self, machine: Machine, last: Interruption | None, life: Life, start: int, status: int) -> None:
        """Whether the start ended by the interruption that was to end it, or came to the training's end."""
        if life.ended and status == 0:
            self.screen.say("drill", f"it has come to its end, at step {life.last_step}")
            return
        if last is not None and last.kills:
            return
        if last is not None and status == Interrupted.exit_status:
            self.screen.say("drill", f"the trainer has left with status {status}: run me again")
            return
        where = f"start {start}, which went on from {life.resumed_from}," if life.resumed_from else f"start {start}"
        raise _failed(f"{where} ended with status {status}", machine.trainer, life)

    def _interrupt(self, machine: Machine, folder: Path, one: Interruption) -> bool:
        """Lets it happen at its step; False if the training ended before."""
        if one.wait and machine.wait_held(folder, one.wait, self.patience_s):
            machine.committed = wait_until(
                "a committed snapshot",
                lambda: machine.run().get("last_committed"),
                self.patience_s,
                alive=[machine.trainer, machine.agent],
            )
            machine.let_go(folder, one.wait)
        if not machine.wait_held(folder, one.hold, self.patience_s):
            self.screen.say("drill", f"it ended before step {one.hold}: no {one.kind}")
            return False
        _ACTS[one.kind](self, machine, folder, one.hold)
        return True

    def notice(self, machine: Machine, folder: Path, step: int) -> None:
        """A spot notice, with time to save."""
        document = machine.metadata.interrupt("terminate", in_seconds=NOTICE_S)
        self.screen.say("metadata", f"step {step}: from now on spot/instance-action answers {document}")
        wait_until(
            "the agent to see the notice",
            lambda: (machine.standing() or {"notices": []})["notices"],
            self.patience_s,
            alive=[machine.agent],
        )
        machine.let_go(folder, step)

    def sigterm(self, machine: Machine, folder: Path, step: int) -> None:
        """SIGTERM, as a container engine sends it."""
        self.screen.say("drill", f"step {step}: SIGTERM to the trainer (process {machine.trainer_pid})", style="bold")
        machine.signal_trainer(signal.SIGTERM)
        machine.let_go(folder, step)

    def kill_trainer(self, machine: Machine, folder: Path, step: int) -> None:
        """SIGKILL, as the kernel sends it when memory is short; the agent commits what was sealed."""
        pid = machine.trainer_pid
        machine.signal_trainer(signal.SIGKILL)
        self.screen.say("drill", f"step {step}: SIGKILL to the trainer (process {pid})", style="bold")

    def kill_agent(self, machine: Machine, folder: Path, step: int) -> None:
        """SIGKILL; another agent takes over while the training goes on."""
        pid = machine.agent.pid
        machine.agent.kill()
        self.screen.say("drill", f"step {step}: SIGKILL to the agent (process {pid}), another one starts", style="bold")
        machine.start_agent()
        machine.let_go(folder, step)

    def kill_upload(self, machine: Machine, folder: Path, step: int) -> None:
        """The machine dies in the middle of an upload."""
        sent = self._wait_for_half_an_upload(machine)
        pids = f"{machine.trainer_pid} and {machine.agent.pid}"
        machine.vanish()
        text = f"step {step}, {sent}: SIGKILL to trainer and agent (processes {pids}); their disk is erased"
        self.screen.say("drill", text, style="bold")
        self.screen.say("bucket", describe(self.place.store(RUN), RUN))

    def _wait_for_half_an_upload(self, machine: Machine) -> str:
        """How far it is, in words; a small snapshot may be there before anybody can look."""
        began = time.monotonic()

        def cut() -> str | None:
            run = machine.run()
            flight = run.get("uploading")
            if flight and (
                flight["gone_bytes"] > flight["total_bytes"] / 4 or time.monotonic() - began > _SENDING_S / 3
            ):
                gone = f"{flight['gone_bytes'] / 1e3:,.0f} of " if flight["gone_bytes"] else ""
                return f"{gone}{flight['total_bytes'] / 1e3:,.0f} kB of {flight['id']} are on their way"
            return "its last snapshot went in no time" if run.get("last_committed") != machine.committed else None

        return wait_until("an upload", cut, self.patience_s, alive=[machine.trainer, machine.agent])

    def _boot(self, number: int, *, limited: bool) -> Machine:
        limit = max(self.state_bytes / _SENDING_S, 1.0) if limited and self.state_bytes else 0.0
        machine = Machine(
            number,
            disk=self.work / f"m{number}",
            logs=self.kept,
            environment=self.place.environment,
            heard=self._hear,
            upload_limit=limit,
        )
        try:
            machine.boot()
        except BaseException:
            machine.vanish()
            raise
        if number:
            at = f", which uploads {limit / 1e3:,.0f} kB/s at most" if limit else ""
            self.screen.say("drill", f"machine {number} boots with an empty disk and starts its agent{at}")
        return machine

    @contextmanager
    def _machine(self, number: int) -> Iterator[Machine]:
        machine = self._boot(number, limited=False)
        try:
            yield machine
        finally:
            machine.vanish()

    def _folder(self, name: str) -> Path:
        folder = self.work / "lives" / name
        folder.mkdir(parents=True)
        return folder

    def _hear(self, speaker: str, line: str) -> None:
        if self.verbose:
            self.screen.say(speaker, line)


_ACTS = {
    "notice": Course.notice,
    "sigterm": Course.sigterm,
    "kill-trainer": Course.kill_trainer,
    "kill-agent": Course.kill_agent,
    "kill-upload": Course.kill_upload,
}


@contextmanager
def stage(keep: Path | None) -> Iterator[tuple[ExitStack, Path, Path]]:
    """What has to be ended at the end, a directory that vanishes, and one for logs: `keep`, or it vanishes too."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotckpt-drill-")))
        yield stack, work, keep or work


def _until_restart(pending: Sequence[Interruption]) -> list[Interruption]:
    """The interruptions of one start of the training: up to the one that ends it."""
    mine: list[Interruption] = []
    for one in pending:
        mine.append(one)
        if one.ends_life:
            break
    return mine


def _cuts(mine: Sequence[Interruption]) -> bool:
    return any(one.kind == "kill-upload" for one in mine)


def _printed(log: Path) -> list[str]:
    """What the program said, without our own lines, which name snapshots and times."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [line for line in lines if not line.startswith("spotckpt: ")]


def _failed(what: str, child: Child, life: Life, *, probed: bool = True) -> DrillFailed:
    hint = "run the command by hand first: it must end with status 0"
    if probed and not life.opened:
        what += ", and opened no run"
        hint = "the drill needs a program that uses spotckpt.resumable or spotckpt.open_run"
    elif probed and not life.ended:
        what += f" at step {life.last_step}, and its run is not finished"
    tail = child.tail()
    return DrillFailed(f"{what}; its last lines:\n{tail}\n" if tail else what, hint=hint)
