"""What the runs of one agent share: the line and the spool. Each gets its part, however much the others want."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from spotckpt.agent.options import AgentOptions
from spotckpt.agent.room import Shortage
from spotckpt.agent.spool_slot import SpoolSlot
from spotckpt.store.limiter import Limiter, Pace, Share

MOST_UPLOADS = 16
"""For the deadline of an upload: so many share the line at worst."""


class Commons:
    """Thread-safe.

    Args:
        options: the agent's limits.
        slots: every slot of every run, those of ended ones too.
        make_room: removes what is only kept in case that it is asked for.

    Attributes:
        slowest: bytes per second that a run gets of the limit at worst; None without a limit.
    """

    def __init__(
        self, options: AgentOptions, *, slots: Callable[[], Iterable[SpoolSlot]], make_room: Callable[[], None]
    ) -> None:
        self._quota_bytes = options.spool_quota_bytes
        self._limiter = Limiter(options.upload_limit) if options.upload_limit else None
        self.slowest = options.upload_limit / MOST_UPLOADS if options.upload_limit else None
        self._slots = slots
        self._make_room = make_room
        self._growing: dict[SpoolSlot, int] = {}
        self._lock = threading.Lock()

    def share(self) -> Pace | None:
        """Another run's part of the line."""
        return None if self._limiter is None else Share(self._limiter)

    def begin_growing(self, slot: SpoolSlot, size_bytes: int, *, is_first: bool) -> Shortage | None:
        """Counts the slot with that size, until `end_growing`; or says why there is no room for it.

        A run's first slot takes what is left; a further one leaves room for one more of its size, so that nobody has
        three while another run has none.
        """
        if not self._quota_bytes:
            return None
        short = self._reserve(slot, size_bytes, is_first=is_first)
        if short is not None and is_first:
            self._make_room()
            short = self._reserve(slot, size_bytes, is_first=is_first)
        return short

    def end_growing(self, slot: SpoolSlot) -> None:
        """From here on the slot counts as it is."""
        with self._lock:
            self._growing.pop(slot, None)

    def _reserve(self, slot: SpoolSlot, size_bytes: int, *, is_first: bool) -> Shortage | None:
        with self._lock:
            found = {other: other.allocated_bytes for other in self._slots() if other is not slot} | self._growing
            taken = sum(found.values())
            missing = taken + size_bytes * (1 if is_first else 2) - self._quota_bytes
            if missing > 0:
                why = f"{taken} bytes of the quota of {self._quota_bytes} (SPOTCKPT_SPOOL_QUOTA) are taken"
                return Shortage(slot.path.parent, missing, why)
            self._growing[slot] = size_bytes
            return None
