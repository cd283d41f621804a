"""Staging: the state of one boundary, copied into a slot of the spool and sealed there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spotckpt.agent.slots import Mappings, Slot
from spotckpt.deadline import SYSTEM_CLOCK, Deadline
from spotckpt.snapshot.metrics import Best
from spotckpt.snapshot.pack import Layout, layout
from spotckpt.snapshot.staged import Staged
from spotckpt.training.capture import Capture, copy_into
from spotckpt.training.session import Session


@dataclass(frozen=True)
class Facts:
    """What a manifest says besides the state itself.

    Attributes:
        step: boundaries counted.
        epoch: in progress or next.
        latest: the last value of each metric.
        best: the best values, by `set/name:mode`.
        evaluated: the metrics measured with exactly these weights.
        arguments: of the train function.
        environment: where it runs.
    """

    step: int
    epoch: int
    latest: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, Best] = field(default_factory=dict)
    evaluated: Mapping[str, float] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


class Stager:
    """Copies what was captured; everything is copied when `stage` returns, so the training may go on at once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._mappings = Mappings()

    def stage(
        self, captured: Capture, facts: Facts, *, reason: str, finished: bool = False, wait: Deadline | None = None
    ) -> str | None:
        """Seals a snapshot in the spool.

        Args:
            captured: at this very boundary.
            facts: for the manifest.
            reason: periodic, notice, manual, best or final.
            finished: whether the run is over with it.
            wait: how long to wait for a slot; None: not at all.

        Returns:
            The snapshot's id; None when no slot is free or no agent answers.

        Raises:
            SpoolError: the spool has no room or was removed; nothing became visible.
        """
        started = time.perf_counter()
        plan = layout(captured.specs)
        slot = self._session.slot(plan.data_bytes, facts.step, wait_s=wait.seconds_left if wait else 0.0)
        if slot is None:
            return None
        try:
            buffer = self._mappings.open(slot)
            with buffer:
                copy_into(captured, buffer, plan)
            timings = {"stage": time.perf_counter() - started}
            slot.seal(_describe(slot, captured, plan, facts, reason=reason, finished=finished, timings=timings))
        except BaseException:
            self._session.abort(slot)
            raise
        self._session.sealed(slot)
        return slot.id

    def close(self) -> None:
        """Forgets the slots' memory."""
        self._mappings.close()


def _describe(
    slot: Slot,
    captured: Capture,
    plan: Layout,
    facts: Facts,
    *,
    reason: str,
    finished: bool,
    timings: Mapping[str, float],
) -> Staged:
    """All that the manifest and the part will need."""
    return Staged(
        id=slot.id,
        step=facts.step,
        epoch=facts.epoch,
        reason=reason,
        created=SYSTEM_CLOCK.wall(),
        tree=captured.tree,
        specs=captured.specs,
        data_bytes=plan.data_bytes,
        finished=finished,
        latest=facts.latest,
        best=facts.best,
        evaluated=facts.evaluated,
        arguments=facts.arguments,
        environment=facts.environment,
        timings=timings,
    )
