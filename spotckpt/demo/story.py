"""What happens in the demo, chapter by chapter: real processes, a real server, and somebody who watches both."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from spotckpt.demo.bucket import URI, Bucket, child_environment
from spotckpt.demo.compare import Verdict, compare, read_state
from spotckpt.demo.machine import Machine
from spotckpt.demo.process import Child, DemoFailed, wait_until
from spotckpt.demo.screen import Screen
from spotckpt.demo.servers import SlowNetwork
from spotckpt.errors import Interrupted

NOTICE_S = 10.0
SLOW_BYTES_PER_S = 3 * 2**20
SEEN_BYTES = 4 * 2**20
PACE_S = 0.02
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Stage:
    """What all chapters share. Everything on it is gone after `stage`, but for `kept`."""

    screen: Screen
    seed: int
    work: Path
    kept: Path
    bucket: Bucket
    network: SlowNetwork

    def end_state(self, name: str) -> Path:
        """Where a training writes how it ended."""
        return self.kept / f"{name}.npz"

    @contextmanager
    def machine(self, number: int) -> Iterator[Machine]:
        """A new machine that trains; it vanishes at the end at the latest."""
        machine = Machine(
            number, disk=self.work / f"m{number}", logs=self.kept, port=self.network.port, screen=self.screen
        )
        try:
            self.screen.say("demo", f"machine {number} boots with an empty disk and starts its agent")
            machine.boot()
            self.screen.say("demo", "and the training, which loads torch first: python -m spotckpt.demo.spot")
            machine.train(seed=self.seed, pace_s=PACE_S, out=self.end_state("resumed"))
            yield machine
        finally:
            machine.vanish()


@contextmanager
def stage(screen: Screen, *, seed: int, keep: Path | None, s3_port: int) -> Iterator[Stage]:
    """Starts the bucket's server and the network, and makes the directories.

    Args:
        screen: where it is told.
        seed: of the training.
        keep: where logs and end states go; None throws them away.
        s3_port: see `Bucket`.
    """
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotckpt-demo-")))
        kept = keep or work
        bucket = Bucket(port=s3_port, log_path=kept / "bucket.log", temporary=work)
        stack.callback(bucket.stop)
        bucket.start()
        network = SlowNetwork(upstream_port=bucket.port)
        stack.callback(network.stop)
        network.start()
        screen.say("bucket", f"{bucket.server} listens on 127.0.0.1:{bucket.port}")
        yield Stage(screen, seed, work, kept, bucket, network)


def train_plainly(stage: Stage) -> None:
    """The training without spotckpt, from beginning to end."""
    stage.screen.chapter("1. A training without spotckpt, never interrupted")
    plain = Child("plain", log_path=stage.kept / "plain.log")
    command = [sys.executable, "-m", "spotckpt.demo.plain", "--seed", str(stage.seed)]
    stage.screen.say("demo", "the training loads torch: python -m spotckpt.demo.plain")
    try:
        plain.start(
            [*command, "--out", str(stage.end_state("plain"))],
            environment=child_environment(stage.network.port, temporary=stage.work),
            on_line=lambda line: stage.screen.say("plain", line),
        )
        _expect(plain, 0)
    finally:
        plain.kill()


def train_until_notice(stage: Stage) -> None:
    """The same training with spotckpt gets a spot notice, saves and leaves."""
    stage.screen.chapter("2. The same training with spotckpt gets a spot notice")
    with stage.machine(1) as machine:
        _wait_for_snapshots(stage, machine, count=2)
        document = machine.metadata.interrupt("terminate", in_seconds=NOTICE_S)
        stage.screen.say("metadata", f"from now on spot/instance-action answers {document}")
        _expect(machine.trainer, Interrupted.exit_status)
        stage.screen.say("demo", f"the trainer has left with status {Interrupted.exit_status}: run me again elsewhere")
    _see_bucket(stage)
    stage.screen.say("demo", "machine 1 is gone, and its disk with it")


def train_until_killed(stage: Stage) -> None:
    """It goes on elsewhere, until that machine dies in the middle of an upload."""
    stage.screen.chapter("3. It goes on elsewhere, and that machine dies in the middle of an upload")
    with stage.machine(2) as machine:
        _wait_for_snapshots(stage, machine, count=1)
        stage.network.bytes_per_s = SLOW_BYTES_PER_S
        stage.screen.say("demo", f"the network to the bucket slows down to {SLOW_BYTES_PER_S / 2**20:g} MiB/s")
        _wait_for_half_an_upload(stage, machine)
        pids = f"{machine.trainer.pid} and {machine.agent.pid}"
        machine.vanish()
        stage.screen.say("demo", f"SIGKILL to trainer and agent (processes {pids}); their disk is erased", style="bold")
    stage.network.bytes_per_s = None
    _see_bucket(stage)
    if not stage.bucket.incomplete():
        raise DemoFailed("the upload was complete before the machine died", hint="try again")


def train_to_the_end(stage: Stage) -> None:
    """A third machine, again with an empty disk, finishes it."""
    stage.screen.chapter("4. A third machine, again with an empty disk, finishes it")
    with stage.machine(3) as machine:
        _expect(machine.trainer, 0)
    _see_bucket(stage)
    for attempt in (2, 3):
        base = stage.bucket.base(attempt)
        if base is None:
            raise DemoFailed(f"attempt {attempt} did not continue a snapshot", hint="see the trainer's lines above")
        stage.screen.say("bucket", f"attempt {attempt} is recorded as continued from {base}")
    if stage.bucket.incomplete():
        stage.screen.say("demo", "no reader ever sees the incomplete upload; on S3 a lifecycle rule clears it away")


def list_run(stage: Stage) -> None:
    """What a user would ask now: `spotckpt ls`."""
    lister = Child("ls", log_path=stage.kept / "ls.log")
    stage.screen.say("demo", f"spotckpt ls {URI}")
    environment = child_environment(stage.bucket.port, temporary=stage.work)
    lister.start([sys.executable, "-m", "spotckpt", "ls", URI], environment=environment, on_line=stage.screen.verbatim)
    _expect(lister, 0)


def compare_ends(stage: Stage) -> Verdict:
    """Reads what both trainings wrote at their end and compares it byte for byte."""
    stage.screen.chapter("5. Both ends, byte for byte")
    return compare(read_state(stage.end_state("plain")), read_state(stage.end_state("resumed")))


def tell(screen: Screen, *, seed: int = 1, keep: Path | None = None, s3_port: int = 0) -> Verdict:
    """The whole demo. Every process, port and temporary file is gone afterwards, come what may.

    Raises:
        DemoFailed: something did not happen that should have.
    """
    with stage(screen, seed=seed, keep=keep, s3_port=s3_port) as set_up:
        for chapter in (train_plainly, train_until_notice, train_until_killed, train_to_the_end, list_run):
            chapter(set_up)
        if keep:
            set_up.bucket.copy_to(keep / "bucket")
            screen.say("demo", f"kept: logs and end states in {keep}; see also: spotckpt ls {keep}/bucket/run")
        return compare_ends(set_up)


def _wait_for_snapshots(stage: Stage, machine: Machine, *, count: int) -> None:
    def enough() -> bool:
        return len(stage.bucket.snapshots(machine.number)) >= count

    wait_until("a committed snapshot", enough, _PATIENCE_S, alive=[machine.trainer, machine.agent])


def _wait_for_half_an_upload(stage: Stage, machine: Machine) -> None:
    alive = [machine.trainer, machine.agent]
    wait_until("a multipart upload", stage.bucket.incomplete, _PATIENCE_S, alive=alive)
    begun = stage.network.sent_bytes
    stage.screen.say("bucket", f"a multipart upload has begun: {stage.bucket.incomplete()[0]}")
    wait_until("bytes of it", lambda: stage.network.sent_bytes - begun > SEEN_BYTES, _PATIENCE_S, alive=alive)
    sent = (stage.network.sent_bytes - begun) / 2**20
    stage.screen.say("bucket", f"{sent:.1f} MiB of it have come over the network, the rest is on its way")


def _see_bucket(stage: Stage) -> None:
    stage.screen.say("bucket", stage.bucket.describe())


def _expect(child: Child, status: int) -> None:
    found = child.wait(_PATIENCE_S)
    if found != status:
        raise DemoFailed(f"{child.name} ended with status {found}, not {status}; its last lines:\n{child.tail()}")
