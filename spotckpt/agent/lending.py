"""Lending slots to the trainer: memory is allocated without the run's lock, which notices and uploads wait for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spotckpt.agent import room
from spotckpt.agent.commons import Commons
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.spool import RunSpool, unusable
from spotckpt.agent.spool_slot import SpoolSlot
from spotckpt.deadline import Deadline
from spotckpt.errors import SpoolError

_LOG = logging.getLogger(__name__)

QUICK_BYTES = 64 << 20
"""So much is allocated while the trainer waits: a fifth of a second at worst. More is allocated in the background."""

_LOOK_S = 1.0


class Lender:
    """Gives out the slots of one run.

    Args:
        spool: the run's.
        options: how many slots there may be, and the memory to leave free.
        changed: the run's lock, notified when a slot becomes free.
        tell: told what the user should know of the room there is, each thing once.
        commons: what other runs want too.

    Attributes:
        starved: a snapshot found no slot; the next upload is urgent.
        only_one: there is room for one slot, so whoever wants it waits for its upload instead of going without.
    """

    def __init__(
        self,
        spool: RunSpool,
        options: AgentOptions,
        changed: threading.Condition,
        tell: Callable[[str], None],
        commons: Commons,
    ) -> None:
        self._spool = spool
        self._commons = commons
        self._options = options
        self._changed = changed
        self._growing = self._closed = False
        self._short: list[room.Shortage] = []
        self._tell = tell
        self._told: set[str] = set()
        self.starved = self.only_one = False

    def lend(self, size_bytes: int, *, step: int, deadline: Deadline, check: Callable[[], None]) -> SpoolSlot | None:
        """A slot of that size, granted; None if all are taken, or not allocated yet, until the deadline.

        Args:
            size_bytes: of the snapshot.
            step: of the snapshot.
            deadline: how long to wait; one that has passed: not at all.
            check: raises when there is nothing to wait for any more.

        Raises:
            SpoolError: there is no room for even one, or the spool cannot be used.
        """
        with self._changed, _translated(self._spool.path):
            self._spool.reclaim()
            while True:
                check()
                slot = self._take(size_bytes, step)
                self.starved = slot is None and not self._growing
                if slot is not None or (deadline.passed and not (self._growing and size_bytes <= QUICK_BYTES)):
                    return slot
                self._changed.notify_all()  # an upload that could wait is urgent now
                self._changed.wait(min(max(deadline.seconds_left, 0.01), _LOOK_S))

    def prepare(self, size_bytes: int) -> list[SpoolSlot]:
        """Allocates every slot that there is room for, before the first is needed; those that fit."""
        with self._changed:
            while not self._closed and len(self._spool.fitting(size_bytes)) < self._options.slots:
                if self._growing:
                    self._changed.wait(_LOOK_S)
                elif (slot := self._growable(size_bytes)) is None or not self._grow(slot, size_bytes):
                    break
            return self._spool.fitting(size_bytes)

    def close(self) -> None:
        """Nothing is allocated any more when this returns. With the run's lock held."""
        self._closed = True
        while self._growing:
            self._changed.wait(_LOOK_S)

    def _take(self, size_bytes: int, step: int) -> SpoolSlot | None:
        """A slot now, or None. With the lock held."""
        while True:
            slot = self._spool.take(size_bytes, step=step)
            if slot is not None or self._growing:
                return slot
            small = None if self._short else self._growable(size_bytes)
            if small is not None and size_bytes > QUICK_BYTES:
                threading.Thread(target=self.prepare, args=(size_bytes,), name="allocate", daemon=True).start()
                return None
            if small is not None and self._grow(small, size_bytes):
                continue
            if self._spool.free_outdated():
                continue
            short, self._short = self._short, []
            slot = self._spool.take(size_bytes, step=step)  # one may have become free while the lock was let go
            if slot is None and short and not any(slot.grant for slot in self._spool.slots):
                raise _no_room(size_bytes, short)
            return slot

    def _growable(self, size_bytes: int) -> SpoolSlot | None:
        return self._spool.growable(size_bytes, most=self._options.slots)

    def _grow(self, slot: SpoolSlot, size_bytes: int) -> bool:
        """Allocates the slot's memory. Lets the lock go meanwhile.

        Returns:
            Whether it is worth looking again: there is one more, or what an old one had is free now.
        """
        had = slot.allocated_bytes
        if slot not in self._spool.slots:
            self._spool.slots.append(slot)
        slot.growing = self._growing = True
        self._changed.release()
        try:
            short = self._allocate(slot, room.round_up(size_bytes))
        finally:
            self._changed.acquire()
            slot.growing = self._growing = False
            self._changed.notify_all()
        grown = slot.allocated_bytes >= size_bytes
        if not grown:
            self._spool.forget(slot)
            self._short = [] if had else short
        self._note(size_bytes, short, grown=grown)
        return grown or slot.allocated_bytes < had

    def _allocate(self, slot: SpoolSlot, size_bytes: int) -> list[room.Shortage]:
        is_first = not any(other.allocated_bytes for other in self._spool.slots if other is not slot)
        short = self._commons.begin_growing(slot, size_bytes, is_first=is_first)
        if short is not None:
            return [short]
        try:
            return slot.allocate(size_bytes, reserve_bytes=self._options.reserve_bytes)
        finally:
            self._commons.end_growing(slot)

    def _note(self, size_bytes: int, short: list[room.Shortage], *, grown: bool) -> None:
        where = "; ".join(map(str, short))
        slots = len(self._spool.slots)
        self.only_one = not grown and slots == 1
        if grown and short:
            self._say(f"snapshots of {size_bytes} bytes are staged on disk", where)
        elif self.only_one:
            self._say("there is room to stage one snapshot only: each waits until the one before is uploaded", where)
        elif not grown and slots:
            self._say(f"there is room to stage {slots} snapshots only: while both are on their way, none is", where)

    def _say(self, note: str, where: str) -> None:
        if note not in self._told:
            self._told.add(note)
            _LOG.warning("%s: %s (%s)", self._spool.token.uri, note, where)
            self._tell(f"{note} ({where})")


@contextmanager
def _translated(spool: Path) -> Iterator[None]:
    """Names the spool in what the file system says."""
    try:
        yield
    except OSError as error:
        raise unusable(spool, error) from error


def _no_room(size_bytes: int, short: list[room.Shortage]) -> SpoolError:
    missing = min(place.missing_bytes for place in short)
    return SpoolError(
        f"no room to stage {size_bytes} bytes: {missing} bytes are missing ({'; '.join(map(str, short))})",
        hint="free memory or disk, or set SPOTCKPT_SPOOL to a directory on a larger disk",
    )
