"""A drill: a training once without interruption and once with many, and what is different at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spotckpt.drill.course import Course
from spotckpt.drill.diagnose import Evidence, Told, Verdict, judge
from spotckpt.drill.plan import KINDS, LEAST_STEPS, Interruption, Kind, plan


@dataclass(frozen=True)
class Orders:
    """What to do.

    Attributes:
        command: program and arguments; `{uri}` in them becomes the run's address.
        kinds: of interruptions, to choose from.
        count: of interruptions; None is one of each kind, fewer in a short training.
        seed: of places and order.
        ignored: names that do not count.
    """

    command: tuple[str, ...]
    kinds: tuple[Kind, ...] = KINDS
    count: int | None = None
    seed: int = 0
    ignored: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        verdict: whether both are the same, and why not.
        interruptions: what happened.
        starts: how often the interrupted training was started.
        num_steps: boundaries of the training.
        counts: how many things were compared at the end, by kind.
    """

    verdict: Verdict
    interruptions: Sequence[Interruption]
    starts: Sequence[Told]
    num_steps: int
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        finding = self.verdict.finding
        return {
            "same": finding is None,
            "finding": None if finding is None else vars(finding),
            "notes": self.verdict.notes,
            "steps": self.num_steps,
            "interruptions": [{"kind": one.kind, "step": one.hold} for one in self.interruptions],
            "starts": [
                {"resumed_from": told.life.resumed_from, "last_step": told.life.last_step} for told in self.starts
            ],
            "compared": self.counts,
        }


def drill(orders: Orders, course: Course) -> Result:
    """Carries it out.

    Raises:
        DrillFailed: the training fails by itself, or cannot be drilled.
    """
    say = course.screen
    say.chapter("1. The training, not interrupted")
    say.say("drill", " ".join(orders.command))
    plain = course.uninterrupted(orders.command, name="uninterrupted")
    num_steps = plain.life.last_step
    say.say("drill", f"it ended at step {num_steps}")
    course.measure("uninterrupted")
    count = min(len(orders.kinds), max(1, num_steps // LEAST_STEPS)) if orders.count is None else orders.count
    interruptions = plan(num_steps, orders.kinds, count=count, seed=orders.seed)

    say.chapter("2. The same training, interrupted")
    starts: list[Told] = []
    verdict = Verdict()
    for told in course.interrupted(orders.command, interruptions):
        starts.append(told)
        verdict = judge(Evidence(plain, starts, None, orders.ignored, told.life.ended))
        if verdict.finding is not None:
            say.say("drill", "it is not the same any more: no need to go on")
            break
    course.bases()
    if verdict.needs_control:
        say.chapter("3. Once more without interruption, to tell a resume from chance")
        control = course.uninterrupted(orders.command, name="control")
        verdict = judge(Evidence(plain, starts, control, orders.ignored))
    return Result(verdict, course.happened, starts, num_steps, _counts(plain))


def _counts(plain: Told) -> dict[str, int]:
    """What is compared of a training, by kind."""
    end = plain.life.records[-1]
    batches = sum(bool(record.batch) for record in plain.life.records)
    counted = {"tensors": len(end.tensors), "generators": len(end.generators), "metrics": len(end.metrics)}
    return {"steps": plain.life.last_step, **counted, "batches": batches}
