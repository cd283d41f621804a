"""Staging: the state of one boundary, copied into a slot of the spool and sealed there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from spotckpt.agent.slots import Mappings, Slot
from spotckpt.deadline import SYSTEM_CLOCK, Deadline
from spotckpt.errors import SpoolError, SpotckptError
from spotckpt.snapshot.metrics import Best, History
from spotckpt.snapshot.pack import Layout, TensorSpec, layout
from spotckpt.snapshot.segments import RowsStaged
from spotckpt.snapshot.staged import Staged
from spotckpt.training.capture import Capture
from spotckpt.training.copying import Copy
from spotckpt.training.cores import has_core_to_spare
from spotckpt.training.overlap import Overlap
from spotckpt.training.pinned import PinnedBuffers, is_capturing
from spotckpt.training.say import say
from spotckpt.training.session import Session

LEAST_ROOM_BYTES = 64 << 10
"""For metrics, in each slot."""


@dataclass(frozen=True)
class Facts:
    """What a manifest says besides the state itself.

    Attributes:
        step: boundaries counted.
        epoch: in progress or next; -1 without epochs.
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


class Torn(Exception):
    """The weights were changed by something else than a step of their optimizer while they were copied."""


class Stager:
    """Copies what was captured into a slot, wholly before the training goes on or the bulk of it meanwhile.

    Args:
        session: whose slots they are.
        overlap: of the settings.
    """

    def __init__(self, session: Session, overlap: bool | None) -> None:
        self._session = session
        self._overlap = overlap
        self._mappings = Mappings()
        self._pinned = PinnedBuffers()
        self._layout: tuple[tuple[TensorSpec, ...], Layout] | None = None
        self._under_way: tuple[Overlap, str] | None = None
        self._owner = os.getpid()

    @property
    def under_way(self) -> bool:
        """Whether a copy goes on, or has ended and nobody has asked how."""
        return self._under_way is not None

    def prepare(self, captured: Capture) -> None:
        """Touches the slots' memory in the background, so that the first snapshot finds it warm."""
        size = self._plan(captured).data_bytes + LEAST_ROOM_BYTES
        thread = threading.Thread(target=self._touch, args=(size,), name="spotckpt-touch", daemon=True)
        with suppress(RuntimeError):  # no thread to be had: the first snapshot takes longer
            thread.start()

    def stage(
        self,
        captured: Capture,
        facts: Facts,
        metrics: History,
        *,
        reason: str,
        finished: bool = False,
        wait: Deadline | None = None,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> str | None:
        """Seals a snapshot in the spool, or begins to.

        Args:
            captured: at this very boundary.
            facts: for the manifest.
            metrics: of which the rows go along that the bucket does not have.
            reason: periodic, notice, manual, best or final.
            finished: whether the run is over with it.
            wait: how long to wait for a slot; None: not at all.
            optimizers: what they own may be copied until their next step; then `settle` tells how that went.

        Returns:
            The snapshot's id; None when no slot is free or no agent answers.

        Raises:
            SpoolError: the spool has no room or was removed; nothing became visible.
            MemoryError: there is no memory for it.
        """
        assert self._under_way is None, "one at a time"
        started = time.perf_counter()
        plan, rows = self._plan(captured), metrics.stage()
        room = plan.data_bytes + _room_for(rows)
        slot = self._session.slot(room, facts.step, wait_s=wait.seconds_left if wait else 0.0)
        if slot is None:
            return None

        def seal() -> None:
            timings.setdefault("copy", time.perf_counter() - started)
            try:
                slot.seal(
                    _describe(slot, captured, plan, facts, rows, reason=reason, finished=finished, timings=timings)
                )
            except BaseException:
                self._session.abort(slot)
                raise
            self._session.sealed(slot)

        timings: dict[str, float] = {}
        try:
            memory = self._mappings.open(slot)
            metrics.rows.copy(rows, memory[plan.data_bytes :])
            metrics.staged(slot.id)
            copy = Copy(captured, memory, plan, self._pinned)
            late = copy.late(optimizers) if self._overlaps(captured, optimizers) else []
            copy.run(sorted(set(copy.rows()) - set(late)) if late else copy.rows())
            if late:
                overlap = Overlap(copy, late, optimizers, seal=seal, discard=partial(self._session.abort, slot))
                timings["stage"] = time.perf_counter() - started
                if self._starts(overlap, slot.id):
                    return slot.id
                copy.run(late)
        except BaseException:
            if self._under_way is None:  # else its thread still writes there
                self._session.abort(slot)
            raise
        timings["stage"] = time.perf_counter() - started
        seal()
        return slot.id

    def join(self) -> None:
        """Returns when the training may change what it likes; what went wrong is `settle`'s to tell."""
        if self._under_way is not None:
            self._under_way[0].join()

    def settle(self, *, give_up: bool = False) -> None:
        """Waits for the end of a copy that is under way; afterwards none is.

        Args:
            give_up: ends it as soon as may be.

        Raises:
            Torn: it is not sealed.
            SpotckptError, MemoryError, OSError, RuntimeError: the copying thread failed; it is not sealed.
        """
        if self._under_way is None:
            return
        overlap, snapshot = self._under_way
        if give_up:
            overlap.give_up()
        try:
            overlap.settle()
        except KeyboardInterrupt:
            raise  # it is still under way
        except BaseException:
            self._under_way = None
            raise
        self._under_way = None
        if overlap.torn:
            raise Torn(snapshot)

    def close(self) -> None:
        """Gives up what is under way and forgets the slots' memory. Idempotent."""
        if os.getpid() != self._owner:
            return  # a fork: the threads are not its own
        with suppress(Exception):  # those who want to know have settled
            self.settle(give_up=True)
        self._mappings.close()

    def _starts(self, overlap: Overlap, snapshot: str) -> bool:
        self._under_way = overlap, snapshot
        try:
            overlap.start()
        except RuntimeError:  # no thread to be had
            self._under_way = None
        return self._under_way is not None

    def _overlaps(self, captured: Capture, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        if not optimizers or self._overlap is False or is_capturing():
            return False
        if self._overlap or any(isinstance(one, torch.Tensor) and one.is_cuda for one in captured.tensors):
            return True
        return has_core_to_spare()

    def _plan(self, captured: Capture) -> Layout:
        """The layout; that of the snapshot before if the tensors are the same ones."""
        if self._layout is None or self._layout[0] != captured.specs:
            self._layout = captured.specs, layout(captured.specs)
        return self._layout[1]

    def _touch(self, size_bytes: int) -> None:
        try:
            for slot, data in self._session.prepare(size_bytes):
                self._mappings.touch(slot, data)
        except SpoolError as error:
            say(f"warning: {error}")
        except SpotckptError:
            pass  # the run was closed meanwhile, or the agent says it again at the first snapshot


def _room_for(rows: RowsStaged) -> int:
    """In steps, so that a slot that has become too small stays large enough for long."""
    return max(LEAST_ROOM_BYTES, 1 << (rows.size_bytes - 1).bit_length())


def _describe(
    slot: Slot,
    captured: Capture,
    plan: Layout,
    facts: Facts,
    rows: RowsStaged,
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
        history=rows,
        data_bytes=plan.data_bytes,
        finished=finished,
        latest=facts.latest,
        best=facts.best,
        evaluated=facts.evaluated,
        arguments=facts.arguments,
        environment=facts.environment,
        timings=timings,
    )
