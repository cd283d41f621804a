"""What a notice means for one run: the planner is asked again and again, and both ends are told what it says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from spotckpt.agent.log import about
from spotckpt.agent.pace import PACE_NAME, read_pace
from spotckpt.agent.planner import Decision, Flight, Plan, Situation, decide
from spotckpt.agent.protocol import Message
from spotckpt.agent.uploading import Uploads
from spotckpt.deadline import Clock
from spotckpt.notices.notice import Notice, most_urgent
from spotckpt.snapshot.keys import SnapshotId

_LOG = logging.getLogger(__name__)

LOOK_S = 0.25
LONGEST_PAUSE_S = 1.0
"""Between two tries while the machine goes."""


class Answers:
    """Follows one run from its first final notice to its end. A notice that is no longer shown still counts.

    Args:
        uploads: the run's.
        tell: sends an event to its trainers.
        clock: for deadlines.
    """

    def __init__(self, uploads: Uploads, *, tell: Callable[[Message], None], clock: Clock) -> None:
        self._uploads = uploads
        self._tell = tell
        self._clock = clock
        self._hinted: set[str] = set()
        self._notice: Notice | None = None
        self._seen_at = 0.0
        self._fresh_from = 0
        self._asked: tuple[float, int] | None = None
        self._told: Plan = "continue"
        self._said = ""
        self._thread: threading.Thread | None = None

    def answer(self, notice: Notice) -> Decision:
        """What the trainer shall do now; from here on it is told when that changes."""
        if not notice.is_final:
            return self._hint(notice)
        uploads, now = self._uploads, self._clock.now()
        if not uploads.spool.token.based:
            return Decision(
                "stop", "go", f"{notice.describe(now)}: the training has not begun, so nothing is to be saved"
            )
        with uploads.changed:
            if self._notice is None:
                self._seen_at, self._fresh_from = now, uploads.spool.token.next_sequence
            self._notice = most_urgent(known for known in (self._notice, notice) if known is not None)
            seconds_left = notice.seconds_left(now)
            if seconds_left is not None:
                uploads.queue.deadline = uploads.queue.deadline.within(seconds_left)
            decision = self._decide()
            self._note(decision.plan)
            uploads.backoff.limit_s = LONGEST_PAUSE_S
            uploads.hurry()
            return decision if self._is_followed() else replace(decision, plan="last")

    def _hint(self, notice: Notice) -> Decision:
        asked_s = 0.0 if notice.id in self._hinted else None
        self._hinted.add(notice.id)
        decision = decide(Situation(notice=notice, now=self._clock.now(), asked_s=asked_s))
        self._uploads.queue.urgent = True  # a snapshot that is staged from here on is urgent by its reason
        self._uploads.hurry()
        _LOG.info("%s: %s", self._uploads.name, decision.why)
        return decision

    def _is_followed(self) -> bool:
        """Whether there is a thread that will tell the trainer more."""
        if self._thread is None:
            name = f"plan-{self._uploads.spool.token.attempt}"
            self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # there are no threads left
                self._thread = None
        return self._thread is not None

    def _follow(self) -> None:
        token = self._uploads.spool.token
        try:
            with about(run=token.uri, attempt=token.attempt):
                while not self._is_over():
                    self._look()
        except Exception:  # noqa: BLE001  the top of a thread: without a plan the trainer stops while there is time
            _LOG.exception("%s: the planner failed", self._uploads.name)
            self._announce("last", "the agent cannot plan")
        finally:
            self._uploads.queue.held_below = 0

    def _look(self) -> None:
        with self._uploads.changed:
            self._uploads.changed.wait(LOOK_S)
            decision = self._decide()
            is_news = self._told not in ("last", "stop") and self._note(decision.plan)
        if is_news:
            self._announce(decision.plan, decision.why)

    def _is_over(self) -> bool:
        return self._uploads.ended or self._uploads.superseded is not None

    def _announce(self, plan: Plan, why: str) -> None:
        assert self._notice is not None
        self._tell(
            {
                "event": "plan",
                "uri": self._uploads.spool.token.uri,
                "kind": self._notice.kind,
                "action": self._notice.action,
                "seconds_left": self._notice.seconds_left(self._clock.now()),
                "plan": plan,
                "why": why,
            }
        )

    def _note(self, plan: Plan) -> bool:
        """Remembers what the trainer is told; whether there is anything to tell. With the lock held."""
        if plan == "continue" or (plan == "snapshot" and self._is_awaited()):
            return False
        if plan != "stop":
            self._asked = self._clock.now(), self._uploads.spool.token.next_sequence
        self._told = plan
        return True

    def _decide(self) -> Decision:
        """Asks the planner and sees to the agent's own part. With the lock held."""
        uploads = self._uploads
        decision = decide(self._situation())
        uploads.queue.urgent = True
        uploads.queue.held_below = self._fresh_from if decision.sending == "hold" else 0
        transfer = uploads.sender.transfer
        if decision.sending == "abandon" and transfer is not None:
            transfer.given_up = True
        uploads.changed.notify_all()
        self._say(decision)
        return decision

    def _say(self, decision: Decision) -> None:
        """Each decision once, with its numbers."""
        said = f"{decision.plan}, {decision.sending}"
        if said != self._said and self._told not in ("last", "stop"):
            self._said = said
            _LOG.info("%s: %s: %s", self._uploads.name, decision.plan, decision.why)

    def _is_awaited(self) -> bool:
        """Whether a snapshot was asked for and none has been sealed since."""
        return self._asked is not None and not self._has(self._asked[1])

    def _has(self, least: int) -> bool:
        """Whether there is one from that sequence number on, sealed or committed."""
        return any(found.sequence >= least for found in self._known())

    def _known(self) -> Iterator[SnapshotId]:
        token = self._uploads.spool.token
        if token.last_committed is not None:
            yield SnapshotId.parse(token.last_committed)
        for slot in self._uploads.spool.slots:
            seal = slot.seal()
            if seal is not None:
                yield SnapshotId.parse(seal.id)

    def _situation(self) -> Situation:
        uploads, sender, now = self._uploads, self._uploads.sender, self._clock.now()
        token, size = uploads.spool.token, uploads.snapshot_bytes
        pace = read_pace(uploads.spool.path / PACE_NAME)
        sealed = next((seal for slot, seal in uploads.spool.sealed() if not slot.leased), None)
        last = token.last_committed
        return Situation(
            notice=self._notice,
            now=now,
            seen_s=now - self._seen_at,
            reserve_s=token.reserve_s,
            snapshot_bytes=None if size is None else int(size * sender.share),
            bandwidth=sender.bandwidth,
            copy_s=sender.copy_s,
            commit_s=sender.commit_s,
            flight=self._flight(),
            sealed_bytes=0 if sealed is None else int(sealed.data_bytes * sender.share),
            sealed_is_fresh=sealed is not None and SnapshotId.parse(sealed.id).sequence >= self._fresh_from,
            boundary_s=None if pace is None else pace.next_s(now),
            step_s=0.0 if pace is None else pace.usual_s,
            asked_s=None if self._asked is None else now - self._asked[0],
            is_awaited=self._is_awaited(),
            has_saved=last is not None and SnapshotId.parse(last).sequence >= self._fresh_from,
        )

    def _flight(self) -> Flight | None:
        """Also before its first byte goes."""
        transfer = self._uploads.sender.transfer
        if transfer is not None:
            return Flight(transfer.left_bytes, is_ours=transfer.began >= self._seen_at)
        leased = next((seal for slot in self._uploads.spool.slots if slot.leased and (seal := slot.seal())), None)
        return None if leased is None else Flight(int(leased.data_bytes * self._uploads.sender.share), is_ours=False)
