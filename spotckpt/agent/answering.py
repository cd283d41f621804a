"""What a notice means for one run."""

from __future__ import annotations

import logging

from spotckpt.agent.planner import Decision, Situation, decide
from spotckpt.agent.uploading import Uploads
from spotckpt.deadline import Clock
from spotckpt.notices.notice import Notice

_LOG = logging.getLogger(__name__)


class Answers:
    """Gives each notice its answer, and sees to the agent's share of it."""

    def __init__(self, uploads: Uploads, clock: Clock) -> None:
        self._uploads = uploads
        self._clock = clock
        self._answered: set[str] = set()

    def answer(self, notice: Notice) -> Decision:
        """What this run's part in a notice is; the newest sealed snapshot goes at once if it says so."""
        uploads, now = self._uploads, self._clock.now()
        decision = decide(
            Situation(
                notice=notice,
                now=now,
                pending_bytes=self._pending_bytes(),
                snapshot_bytes=self._snapshot_bytes(),
                bandwidth=uploads.sender.bandwidth,
                answered=notice.id in self._answered,
            )
        )
        self._answered.add(notice.id)
        seconds_left = notice.seconds_left(now)
        if notice.is_final and seconds_left is not None:
            uploads.queue.deadline = uploads.queue.deadline.within(seconds_left)
        if decision.upload_now:
            uploads.queue.urgent = True  # a snapshot that is staged from here on is urgent by its reason
            uploads.hurry()
        _LOG.info("%s: %s", uploads.name, decision.why)
        return decision

    def _snapshot_bytes(self) -> int | None:
        size = self._uploads.snapshot_bytes
        return None if size is None else int(size * self._uploads.sender.share)

    def _pending_bytes(self) -> int:
        transfer, slots = self._uploads.sender.transfer, list(self._uploads.spool.slots)
        under_way = transfer.total_bytes - transfer.sent_bytes if transfer else 0
        newest = next((seal for slot in slots if not slot.leased and (seal := slot.seal())), None)
        return under_way + int(newest.data_bytes * self._uploads.sender.share if newest else 0)
