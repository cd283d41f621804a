"""The demo: a drill on the bundled training, told aloud, against the same training without spotckpt."""

from __future__ import annotations

import sys
from pathlib import Path

from spotckpt.demo.compare import Verdict, compare, read_state
from spotckpt.drill.course import RUN, Course
from spotckpt.drill.places import copy_to
from spotckpt.drill.plan import Interruption
from spotckpt.drill.process import Child
from spotckpt.errors import DrillFailed

STATE_BYTES = 24 << 20
"""Of the bundled training's snapshots, roughly: the last upload is so slow that it can be cut."""

INTERRUPTIONS = (
    Interruption("notice", hold=65),
    Interruption("kill-upload", saves=(110, 130), wait=130, hold=132),
)


def tell(course: Course, *, seed: int, keep: Path | None) -> Verdict:
    """The whole demo.

    Raises:
        DrillFailed: something did not happen that should have.
    """
    screen = course.screen
    screen.chapter("1. A training without spotckpt, never interrupted")
    screen.say("demo", "the training loads torch: python -m spotckpt.demo.plain")
    plain, resumed = course.kept / "plain.npz", course.kept / "resumed.npz"
    course.uninterrupted(_command("plain", seed, plain), name="plain", probed=False)

    screen.chapter("2. The same training with spotckpt, on machines that go away")
    screen.say("demo", "the same command on each of them: python -m spotckpt.demo.spot")
    course.state_bytes = STATE_BYTES
    for _ in course.interrupted(_command("spot", seed, resumed), INTERRUPTIONS):
        screen.say("demo", "that machine is gone, and its disk with it" if not resumed.exists() else "it is done")
    if not any(write.key for write in course.place.store(RUN).unfinished()):
        raise DrillFailed("the upload was complete before the machine died", hint="try again")
    screen.say("demo", "no reader ever sees the incomplete upload; on S3 a lifecycle rule clears it away")
    course.bases()
    _list(course)

    if keep:
        copy_to(course.place.store(RUN), keep / "bucket" / RUN)
        screen.say("demo", f"kept: logs and end states in {keep}; see also: spotckpt ls {keep}/bucket/run")
    screen.chapter("3. Both ends, byte for byte")
    return compare(read_state(plain), read_state(resumed))


def _command(script: str, seed: int, out: Path) -> list[str]:
    return [sys.executable, "-m", f"spotckpt.demo.{script}", "--seed", str(seed), "--out", str(out)]


def _list(course: Course) -> None:
    """What a user would ask now."""
    lister = Child("ls", log_path=course.kept / "ls.log")
    uri = course.place.run_uri(RUN)
    course.screen.say("demo", f"spotckpt ls {uri}")
    command = [sys.executable, "-m", "spotckpt", "ls", uri]
    lister.start(command, environment=course.place.environment, on_line=course.screen.verbatim)
    if lister.wait(course.patience_s) != 0:
        raise DrillFailed(f"spotckpt ls failed; its last lines:\n{lister.tail()}")
