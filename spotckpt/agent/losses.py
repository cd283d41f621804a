"""How much of a training is not saved, and what an interruption before it has cost."""

from __future__ import annotations

import logging

from spotckpt.agent.pace import PACE_NAME, read_pace
from spotckpt.agent.spool import RunSpool
from spotckpt.deadline import Deadline
from spotckpt.errors import SnapshotError, StoreError
from spotckpt.snapshot.catalog import read_heartbeat
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.losses import Lost, Reached
from spotckpt.snapshot.records import Base
from spotckpt.store.base import Store

_LOG = logging.getLogger(__name__)

NEWEST = "newest"
_LOOKS = 5


def reached(spool: RunSpool) -> Reached | None:
    """How far the trainer has come; None if it has passed no boundary."""
    pace = read_pace(spool.path / PACE_NAME)
    if pace is None:
        return None
    return Reached(pace.step, max(0.0, pace.at - max(pace.began, spool.token.saved_at)))


def unsaved(spool: RunSpool) -> Lost | None:
    """What would be lost now."""
    found, parent = reached(spool), spool.token.parent
    return None if found is None else found.lost(0 if parent is None else SnapshotId.parse(parent).step)


def find_lost(store: Store, base: Base, *, highest: int, deadline: Deadline) -> Lost | None:
    """What the interruption before this attempt has cost; None if that is not known, or was wanted.

    Attempts that passed no boundary lost nothing: it is those before them that count.
    """
    if base.selector != NEWEST:
        return None
    try:
        for number in range(highest, max(0, highest - _LOOKS), -1):
            beat = read_heartbeat(store, number, deadline=deadline)
            if beat is not None and beat.reached is not None:
                return beat.reached.lost(0 if base.id is None else base.id.step)
    except (SnapshotError, StoreError) as error:
        _LOG.info("what the last interruption has cost is not known: %s", error)
    return None
