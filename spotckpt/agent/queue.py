"""What of a run is uploaded next, and whether it goes now or may wait."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from spotckpt.agent.lending import Lender
from spotckpt.agent.planner import fits
from spotckpt.agent.sending import SLOWEST_BYTES_PER_S
from spotckpt.agent.slots import Seal
from spotckpt.agent.spool import RunSpool
from spotckpt.agent.spool_slot import SpoolSlot
from spotckpt.deadline import Clock, Deadline
from spotckpt.snapshot.keys import SnapshotId

_LOG = logging.getLogger(__name__)


class Queue:
    """The sealed slots of one run that are not committed yet. The run's lock guards it.

    Args:
        spool: the run's.
        lender: of its slots.
        bandwidth: bytes per second as measured, or None.
        on_drop: told of each sealed snapshot that gives way to a newer one.
        clock: for `upload_every_s`.

    Attributes:
        urgent: what is sealed goes at once.
        deadline: when the machine goes.
        held_below: older snapshots than this sequence number wait, as a newer one comes at once.
    """

    def __init__(
        self,
        spool: RunSpool,
        lender: Lender,
        *,
        bandwidth: Callable[[], float | None],
        on_drop: Callable[[Seal], None],
        clock: Clock,
    ) -> None:
        self._spool = spool
        self._lender = lender
        self._bandwidth = bandwidth
        self._on_drop = on_drop
        self._clock = clock
        self._last_began = -math.inf
        self.urgent = False
        self.held_below = 0
        self.deadline = Deadline(math.inf, clock.now)

    def pending(self) -> list[tuple[SpoolSlot, Seal]]:
        """The sealed slots, the newest first; what is committed already is freed."""
        token = self._spool.token
        if not token.based:
            return []
        if token.last_committed:  # by an agent that died before it could free the slot
            self._spool.drop_older(than=SnapshotId.parse(token.last_committed))
        return self._spool.sealed()

    def next(self, *, left: bool) -> tuple[SpoolSlot, Seal] | None:
        """The slot to upload now: the newest, after older ones that were asked for; the others are freed.

        Args:
            left: the trainer has ended, so that nothing newer comes.
        """
        if not self.pending():
            return None
        for older, seal in self._spool.outdated():
            self.drop(older, seal)
        pending = self._spool.sealed()
        if len(pending) > 1 and not self._has_time_for(sum(seal.data_bytes for _, seal in pending)):
            for older, seal in pending[1:]:
                self.drop(older, seal)
        pending = self._spool.sealed()
        newest = SnapshotId.parse(pending[0][1].id)
        goes = left or (newest.sequence >= self.held_below and self._is_due(pending))
        return pending[-1] if goes else None  # in the order of the ids: a parent before its child

    def committed(self, began: float) -> None:
        """An upload that began then has succeeded, and its slot is free."""
        self._last_began = began
        self.urgent = self.urgent and bool(self.pending())

    def _is_due(self, pending: list[tuple[SpoolSlot, Seal]]) -> bool:
        """Periodic snapshots may be sealed more often than they are uploaded."""
        return (
            self.urgent
            or self._lender.starved
            or any(seal.reason != "periodic" for _, seal in pending)
            or self._clock.now() - self._last_began >= self._spool.token.upload_every_s
        )

    def _has_time_for(self, size_bytes: int) -> bool:
        if self.deadline.passed:  # and we are still here: it was another's, or the machine did not go
            return True
        bandwidth = self._bandwidth() or SLOWEST_BYTES_PER_S
        return fits(
            size_bytes,
            seconds_left=self.deadline.seconds_left,
            bandwidth=bandwidth,
            reserve_s=self._spool.token.reserve_s,
        )

    def drop(self, slot: SpoolSlot, seal: Seal) -> None:
        """Frees the slot of a snapshot that gives way to a newer one."""
        _LOG.log(logging.WARNING if seal.is_kept else logging.INFO, "%s is dropped unsent for a newer one", seal.id)
        if seal.is_kept:
            self._on_drop(seal)
        slot.free()
