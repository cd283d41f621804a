"""A run's own thread: it sends what is sealed, one snapshot after another, and releases the attempt in the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from spotckpt.agent.commons import Commons
from spotckpt.agent.heart import Heart
from spotckpt.agent.housekeeping import Housekeeper
from spotckpt.agent.lending import Lender
from spotckpt.agent.log import about, fields
from spotckpt.agent.losses import reached
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.planner import overrun
from spotckpt.agent.protocol import Message, error_fields
from spotckpt.agent.queue import Queue
from spotckpt.agent.sending import SLOWEST_BYTES_PER_S, Backoff, GivenUp, Sender, UnreadableSlot
from spotckpt.agent.slots import Seal
from spotckpt.agent.spool import RunSpool
from spotckpt.agent.spool_slot import SpoolSlot
from spotckpt.agent.token import Token
from spotckpt.config import Keep
from spotckpt.deadline import Clock, Deadline
from spotckpt.errors import AgentError, SpotckptError, Superseded
from spotckpt.snapshot.attempts import is_superseded
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.records import Holder
from spotckpt.snapshot.segments import Discontinued
from spotckpt.store.base import Store

_LOG = logging.getLogger(__name__)

DRAIN_LIMIT_S = 600.0
SLOWEST_BEAT_S = 10.0
GONE = "gone"
"""Why a trainer left that did not say why."""
_IDLE_LOOK_S = 1.0


class Uploads:
    """What of one attempt is sent, and how far that has come. Its lock is `changed`.

    Args:
        spool: the attempt's token and slots.
        store: where to, at first.
        holder: this agent and the trainer, for heartbeats.
        commons: what the agent's runs share.
        emit: sends an event to the trainers of this run.
        on_end: called once, on this thread, when the attempt is over and its files are gone.
        adopted: found in the spool, from an agent that died.

    Attributes:
        name: for the log.
        store: where to; with other credentials when there are some.
        return_by: when a trainer that is not known must have come back; None: it is known.
        left_at: when the trainer closed the run or was gone.
        left_because: why, in a few words.
        ended: it is over: released, or dropped.
        sending: an upload is under way.
        superseded: a later attempt owns the run.
        overtaken: its trainer has been told to stop for another one on this machine.
        dropped: why a sealed snapshot was given up since the last commit.
        has_kept: the spool still holds the newest committed snapshot after the end.
    """

    def __init__(
        self,
        spool: RunSpool,
        store: Store,
        *,
        holder: Holder,
        options: AgentOptions,
        commons: Commons,
        emit: Callable[[Message], None],
        on_end: Callable[[], None],
        adopted: bool,
        clock: Clock,
    ) -> None:
        self.spool = spool
        self.name = f"attempt {spool.token.attempt} of {spool.token.uri}"
        self.store = store
        self._emit = emit
        self._on_end = on_end
        self._clock = clock
        self.changed = threading.Condition()
        self.return_by: Deadline | None = None
        self.left_at: float | None = None
        self.left_because = GONE
        self.ended = self.sending = False
        self.has_kept = False
        self.superseded: Superseded | None = None
        self.overtaken: Superseded | None = None
        self.dropped: SpotckptError | None = None
        self._is_slow = False
        self.snapshot_bytes: int | None = None
        self.backoff = Backoff(clock)
        self.sender = Sender(
            spool,
            store,
            require_ours=self.require_ours,
            rename=self._rename,
            slowest=commons.slowest,
            clock=clock,
        )
        self.lender = Lender(spool, options, self.changed, tell=self._warn, commons=commons)
        self.queue = Queue(
            spool, self.lender, bandwidth=lambda: self.sender.bandwidth, on_drop=self._dropped_unsent, clock=clock
        )
        self.heart = Heart(
            spool.token.attempt,
            holder,
            interval_s=min(SLOWEST_BEAT_S, spool.token.stale_after_s / 6),
            store=lambda: self.store,
            last_committed=lambda: self._token.last_committed,
            reached=lambda: reached(spool),
            ended=lambda: self.left_because,
            on_superseded=self._overtaken,
            adopted=adopted,
            clock=clock,
        )
        self._thread = threading.Thread(target=self._work, name=f"run-{spool.token.attempt}", daemon=True)

        self._housekeeper = Housekeeper(
            Keep.parse(spool.token.keep) if spool.token.keep else None,
            attempt=spool.token.attempt,
            store=lambda: self.store,
            require_ours=self.require_ours,
            tell=self._warn,
            name=self.name,
            clock=clock,
        )

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    @property
    def _token(self) -> Token:
        return self.spool.token

    @property
    def drain_limit_s(self) -> float:
        """How long what is sealed may take once nobody waits for a certain time."""
        return DRAIN_LIMIT_S + (self.snapshot_bytes or 0) / SLOWEST_BYTES_PER_S

    @property
    def idle(self) -> bool:
        """Whether nothing is being sent and nothing sealed is left to send. With the lock held."""
        return self.ended or (not self.sending and not self._pending())

    def leave(self, why: str = GONE) -> None:
        """The trainer has closed the run or is gone: send what is sealed, then release. Never blocks."""
        if self.left_at is None:
            self.left_at, self.left_because = self._clock.now(), why
        self.poke()

    def give_way(self, why: Superseded) -> None:
        """Tells the trainer to stop; sends what is sealed, then releases the attempt for whoever takes the run over."""
        self.overtaken = why
        _LOG.warning("%s", why.message)
        self._tell_superseded(why, None)
        self.leave("taken over")

    def hurry(self) -> None:
        """Ends any pause before the next try. Never blocks."""
        self.backoff.hurry()
        self.poke()

    def poke(self) -> None:
        """Wakes the thread. Not waiting for the lock: who holds it may write to a disk, and all look by themselves."""
        if self.changed.acquire(blocking=False):
            try:
                self.changed.notify_all()
            finally:
                self.changed.release()

    def require_ours(self) -> None:
        """Raises Superseded once a later attempt is known."""
        if self.superseded is not None:
            raise self.superseded

    def _work(self) -> None:
        with about(run=self._token.uri, attempt=self._token.attempt):
            while not self.ended:
                self._turn_at_the_edge()
            self._on_end()

    def _turn_at_the_edge(self) -> None:
        try:
            self._turn()
        except Exception as error:  # noqa: BLE001  the edge: a fault in one run must not end the agent
            _LOG.exception("%s: a fault in the agent", self.name)
            self._failed(AgentError(f"fault in the agent: {type(error).__name__}: {error}", hint="see its log"))

    def _turn(self) -> None:
        with self.changed:
            idle = self.backoff.pausing or self.superseded is not None
            found = None if idle else self.queue.next(left=self.left_at is not None)
            if found is not None:
                found[0].leased = self.sending = True
            elif not self._is_over():
                self.changed.wait(_IDLE_LOOK_S)
                return
        if found is not None:
            with about(snapshot=found[1].id):
                self._save(*found)
        else:
            self._finish()

    def _pending(self) -> list[tuple[SpoolSlot, Seal]]:
        return [] if self.ended else self.queue.pending()

    def _is_over(self) -> bool:
        now = self._clock.now()
        if self.return_by is not None and self.return_by.passed and self.left_at is None:
            _LOG.warning("%s: its trainer did not come back", self.name)
            self.left_at = now
        if self.left_at is None:
            return False
        if self.superseded is not None or not self._pending():
            return True
        if now - self.left_at > self.drain_limit_s:
            why = self.dropped = self.backoff.failure
            _LOG.error("%s: given up after %.0f s: %s", self.name, now - self.left_at, why)
            return True
        return False

    def _save(self, slot: SpoolSlot, seal: Seal) -> None:
        began, store = self._clock.now(), self.store
        try:
            if is_superseded(store, self._token.attempt):  # before the bytes: commit would tell only after them
                self._overtaken()
            self._committed(slot, self.sender.send(slot, seal), began)
        except Superseded as error:
            self._supersede(error, seal.id)
        except GivenUp as error:
            _LOG.info("%s", error.message)
            with self.changed:
                self.queue.drop(slot, seal)
        except UnreadableSlot as error:
            self.dropped = error
            self._failed(error)
            with self.changed:
                slot.free()
            if isinstance(error.__cause__, Discontinued):
                self._emit({"event": "discontinued", "uri": self._token.uri, "id": seal.id})
        except SpotckptError as error:
            if self.store is store:  # else a trainer has come back with credentials: what was tried without is no news
                self._failed(error)
        finally:
            with self.changed:
                slot.leased = self.sending = False
                self.sender.transfer = None
                self.changed.notify_all()

    def _rename(self, slot: SpoolSlot) -> SnapshotId | None:
        with self.changed:
            return self.spool.rename(slot, left=self.left_at is not None)

    def _committed(self, slot: SpoolSlot, snapshot: str, began: float) -> None:
        """Token, heartbeat, and only then the slot: whoever dies in between, nothing is told twice or forgotten."""
        with self.changed:
            self.spool.update(last_committed=snapshot, parent=snapshot, saved_at=self.sender.saved_at)
            self.dropped = None
            self.backoff.succeeded()
        transfer, seconds = self.sender.transfer, self._clock.now() - began
        sent = fields(bytes=transfer.sent_bytes if transfer else None, seconds=seconds)
        _LOG.info("%s is committed to %s", snapshot, self._token.uri, extra=sent)
        sizes = self.sender.history_sizes
        self._emit(
            {"event": "committed", "uri": self._token.uri, "id": snapshot, "acknowledged": True, "history": sizes}
        )
        self.heart.beat()
        self._warn_of_overrun()
        with self.changed:
            self.spool.keep(slot)
            self.queue.committed(began)
        self._housekeeper.committed()

    def _warn_of_overrun(self) -> None:
        """Says once that uploads take longer than a notice lasts; again if they had become short enough meanwhile."""
        transfer, bandwidth = self.sender.transfer, self.sender.bandwidth
        if transfer is None or bandwidth is None:
            return
        warning = overrun(transfer.total_bytes, bandwidth, reserve_s=self._token.reserve_s)
        if warning and not self._is_slow:
            _LOG.warning("%s: %s", self._token.uri, warning)
            self._warn(warning)
        self._is_slow = bool(warning)

    def _warn(self, message: str) -> None:
        self._emit({"event": "warning", "uri": self._token.uri, "message": message})

    def _dropped_unsent(self, seal: Seal) -> None:
        self._emit({"event": "dropped", "uri": self._token.uri, "id": seal.id, "reason": seal.reason})

    def _failed(self, error: SpotckptError) -> None:
        with self.changed:
            news = self.backoff.failed(error)
            self.changed.notify_all()
        if news:
            _LOG.warning("%s: %s (trying again)", self.name, error)
            self._emit({"event": "error", "uri": self._token.uri, **error_fields(error)})

    def _overtaken(self) -> None:
        attempt = self._token.attempt
        self._supersede(
            Superseded(f"attempt {attempt + 1} owns {self._token.uri} now; attempt {attempt} writes no more"), None
        )

    def _supersede(self, error: Superseded, snapshot: str | None) -> None:
        if self.superseded is not None:
            return
        self.superseded = error
        self.heart.stop()
        _LOG.error("%s", error.message)
        self._tell_superseded(error, snapshot)
        self.poke()

    def _tell_superseded(self, error: Superseded, snapshot: str | None) -> None:
        self._emit({"event": "superseded", "uri": self._token.uri, "id": snapshot, "message": error.message})

    def _finish(self) -> None:
        """Release, always last; a superseded attempt has nothing to release."""
        released = self.superseded is None and self.heart.release()
        self.heart.stop()
        self._housekeeper.end()
        with self.changed:
            self.lender.close()
            try:
                if self.superseded is not None:
                    self.spool.remove()
                else:
                    self.has_kept = self.spool.retire()
            except OSError as error:  # the next agent sweeps it
                _LOG.warning("%s cannot be cleared away: %s", self.spool.path, error)
            self.ended = True
            self.changed.notify_all()
        state = "is superseded" if self.superseded else "is released" if released else "could not be released"
        _LOG.info("%s %s; last committed: %s", self.name, state, self._token.last_committed)
