"""One open attempt: its slots, its uploads, its end. A thread of its own uploads, so that no run waits for another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from spotckpt.agent.heart import Heart
from spotckpt.agent.lending import Lender
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.planner import Decision, Situation, decide, overrun
from spotckpt.agent.processes import Process
from spotckpt.agent.protocol import Message, error_fields
from spotckpt.agent.queue import Queue
from spotckpt.agent.sending import SLOWEST_BYTES_PER_S, Backoff, Sender, UnreadableSlot
from spotckpt.agent.slots import Seal
from spotckpt.agent.spool import RunSpool, SpoolSlot, Token
from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import (
    AgentError,
    SpoolError,
    SpotckptError,
    Superseded,
)
from spotckpt.notices.notice import Notice
from spotckpt.snapshot.attempts import is_superseded, write_base
from spotckpt.snapshot.records import Base, Holder
from spotckpt.store.base import Store
from spotckpt.store.open import open_store

_LOG = logging.getLogger(__name__)

DRAIN_LIMIT_S = 600.0
SLOWEST_BEAT_S = 10.0
_IDLE_LOOK_S = 1.0


class Run:
    """An attempt held by this agent.

    Args:
        spool: its token and slots.
        trainer: the process that trains; None if that cannot be told (another PID namespace): then it is taken for
            gone unless it attaches before the attempt would be stale.
        environment: the trainer's AWS_* variables; None for the agent's own.
        holder: this agent and the trainer, for heartbeats.
        emit: sends an event to the trainers of this run.
        on_end: called once, on the run's thread, when the attempt is over and its files are gone.
        adopted: found in the spool, from an agent that died.
    """

    def __init__(
        self,
        spool: RunSpool,
        trainer: Process | None,
        *,
        environment: Mapping[str, str] | None,
        holder: Holder,
        options: AgentOptions,
        emit: Callable[[Message], None],
        on_end: Callable[[Run], None],
        adopted: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.spool = spool
        self.trainer = trainer
        self.uri = spool.token.uri
        self._emit = emit
        self._on_end = on_end
        self._clock = clock
        self._store = self._open_store(environment)
        self._changed = threading.Condition()
        self._known_since = clock.now()
        self._left_at: float | None = None
        self._ended = self._sending = False
        self.has_kept = False
        self.superseded: Superseded | None = None
        self._dropped: SpotckptError | None = None
        self.backoff = Backoff(clock)
        self._sender = Sender(spool, store=lambda: self._store, require_ours=self._require_ours, clock=clock)
        self._lender = Lender(spool, options, self._changed, tell=self._warn)
        self._queue = Queue(
            spool, self._lender, bandwidth=lambda: self._sender.bandwidth, on_drop=self._dropped_unsent, clock=clock
        )
        self._snapshot_bytes: int | None = None
        self._answered: set[str] = set()
        self._is_slow = False
        self._heart = Heart(
            spool.token.attempt,
            holder,
            interval_s=min(SLOWEST_BEAT_S, spool.token.stale_after_s / 6),
            store=lambda: self._store,
            last_committed=lambda: self.token.last_committed,
            on_superseded=self._overtaken,
            adopted=adopted,
            clock=clock,
        )
        self._adopted = adopted
        self._thread = threading.Thread(target=self._work, name=f"run-{spool.token.attempt}", daemon=True)

    def start(self) -> None:
        """Begins to beat and to upload. A new attempt's first heartbeat is written before this returns."""
        if not self._adopted:
            self._heart.beat()
        if self.trainer is not None or not self._adopted:
            self._heart.start()
        self._thread.start()

    @property
    def token(self) -> Token:
        """How far it has come."""
        return self.spool.token

    @property
    def ended(self) -> bool:
        """Whether it is over: released, or dropped."""
        return self._ended

    @property
    def left(self) -> bool:
        """Whether the trainer has closed it or is gone."""
        return self._left_at is not None

    def _warn(self, message: str) -> None:
        self._emit({"event": "warning", "uri": self.uri, "message": message})

    def _dropped_unsent(self, seal: Seal) -> None:
        self._emit({"event": "dropped", "uri": self.uri, "id": seal.id, "reason": seal.reason})

    def _open_store(self, environment: Mapping[str, str] | None) -> Store:
        token = self.token
        return open_store(
            self.uri,
            environment=environment,
            call_timeout_s=token.call_timeout_s,
            bandwidth_limit=token.upload_limit or None,
        )

    # ---- for the trainer

    def attach(self, trainer: Process, environment: Mapping[str, str] | None) -> None:
        """Lets the trainer go on after an agent's end.

        Raises:
            AgentError: the attempt is another process's, or over.
            Superseded: a later attempt owns the run.
        """
        self._require_open()
        if self.trainer is not None and self.trainer != trainer:
            raise AgentError(
                f"attempt {self.token.attempt} of {self.uri} belongs to process {self.trainer.pid}",
                hint="open the run instead",
            )
        if self.trainer is None:
            self.trainer = trainer
            self._heart.start()
        self.use_environment(environment)

    def use_environment(self, environment: Mapping[str, str] | None) -> None:
        """Goes on with other credentials, at once."""
        self._store = self._open_store(environment)
        self.hurry()

    def write_base(self, base: Base) -> None:
        """Records what the attempt continues; from here snapshots may be committed. Raises as the function does."""
        self._require_open()
        write_base(self._store, base)
        with self._changed:
            self.spool.update(based=True, parent=None if base.snapshot is None else str(base.snapshot))
        _LOG.info("attempt %d of %s continues %s", self.token.attempt, self.uri, base.snapshot or "nothing: a new run")

    def lend(self, size_bytes: int, *, step: int, wait_s: float) -> SpoolSlot | None:
        """A slot for the next snapshot, or None if there is none to be had and none becomes free for that long.

        Raises:
            SpoolError: there is no room for even one.
            AgentError: the base is not recorded yet, or the run is closed.
        """

        def check() -> None:
            self._require_open()
            if not self.token.based:
                raise AgentError(f"{self.uri}: no slot before the base is recorded", hint="send 'base' first")

        self._snapshot_bytes = size_bytes
        return self._lender.lend(size_bytes, step=step, deadline=Deadline.after(wait_s, self._clock), check=check)

    def prepare(self, size_bytes: int) -> list[SpoolSlot]:
        """Allocates the memory of the slots; those that have it."""
        self._require_open()
        return self._lender.prepare(size_bytes)

    @property
    def must_wait(self) -> bool:
        """Whether there is one slot only, so that a snapshot waits for the upload before; not for one that fails."""
        return self._lender.only_one and self.backoff.failure is None

    def where(self, snapshot: str) -> SpoolSlot | None:
        """The slot that still holds a committed snapshot's bytes; nobody writes there before the base is recorded."""
        with self._changed:
            return None if self.token.based else self.spool.holding(snapshot)

    def abort(self, generation: int) -> None:
        """Frees a slot that was granted and not sealed; nothing if there is no such grant."""
        with self._changed:
            slot = self.spool.find(generation)
            if slot is not None and not slot.leased:
                slot.free()
            self._changed.notify_all()

    def sealed(self, generation: int) -> None:
        """Looks at the slots now.

        Raises:
            SpoolError: there is no valid seal of that generation.
        """
        with self._changed:
            slot = self.spool.find(generation)
            if slot is None or slot.seal() is None:
                # it may have been uploaded, or dropped for a newer one, between the seal and this nudge
                if slot is not None:
                    raise SpoolError(f"{slot.path} has no seal of generation {generation}", hint="stage it again")
                return
        self.hurry()

    def drain(self, deadline: Deadline, *, close: bool, on_progress: Callable[[Message], None]) -> Message:
        """Waits until nothing sealed is left to commit, or it is given up; then, to close, for the release.

        Giving up ends the waiting only: what is sealed stays in the spool, and the agent goes on trying.

        Returns:
            committed, acknowledged, and failure if not acknowledged.
        """
        seen, shown = self.backoff.failures, (-1, "")
        self._queue.deadline = self._queue.deadline.within(deadline.seconds_left)
        self._queue.urgent = True
        if close:
            self.leave()
        self.hurry()
        with self._changed:
            while not self._is_settled(close) and not self._is_hopeless(seen) and not deadline.passed:
                self._changed.wait(min(deadline.seconds_left, 0.1))
                transfer = self._sender.transfer
                if transfer is not None and (now_shown := (transfer.sent_bytes, transfer.id)) != shown:
                    shown = now_shown
                    on_progress(transfer.to_json())
            return self._outcome()

    def drain_limit(self) -> Deadline:
        """How long a drain without a deadline takes at most."""
        return Deadline.after(self._drain_limit_s, self._clock)

    @property
    def _drain_limit_s(self) -> float:
        return DRAIN_LIMIT_S + (self._snapshot_bytes or 0) / SLOWEST_BYTES_PER_S

    def _is_settled(self, close: bool) -> bool:
        if close or self.superseded:
            return self._ended or (self.superseded is not None and not close)
        return self._ended or (not self._sending and not self._pending())

    def _is_hopeless(self, seen: int) -> bool:
        return self.backoff.failures > seen and self.backoff.is_lasting

    def _outcome(self) -> Message:
        reply: Message = {"committed": self.token.last_committed, "acknowledged": False}
        if self.superseded is not None:
            return {**reply, "failure": error_fields(self.superseded)}
        if self._ended or (not self._sending and not self._pending()):
            return {**reply, "acknowledged": self._dropped is None} | (
                {} if self._dropped is None else {"failure": error_fields(self._dropped)}
            )
        failure = self.backoff.failure or AgentError(
            f"{self.uri}: the newest snapshot is not uploaded yet",
            hint="the agent goes on as long as the machine lives",
        )
        return {**reply, "failure": error_fields(failure)}

    def _require_open(self) -> None:
        self._require_ours()
        if self._ended or self.left:
            raise AgentError(f"attempt {self.token.attempt} of {self.uri} is closed", hint="open the run again")

    # ---- for the agent

    def leave(self) -> None:
        """The trainer has closed the run or is gone: upload what is sealed, then release. Never blocks."""
        if self._left_at is None:
            self._left_at = self._clock.now()
        self._poke()

    def hurry(self) -> None:
        """Ends any pause before the next try. Never blocks."""
        self.backoff.hurry()
        self._poke()

    def _poke(self) -> None:
        # without waiting: whoever holds the lock may write to a disk meanwhile; all waits look again by themselves
        if self._changed.acquire(blocking=False):
            try:
                self._changed.notify_all()
            finally:
                self._changed.release()

    def answer(self, notice: Notice) -> Decision:
        """What this run's part in a notice is; the newest sealed snapshot goes at once if it says so."""
        decision = decide(
            Situation(
                notice=notice,
                now=self._clock.now(),
                pending_bytes=self._pending_bytes(),
                snapshot_bytes=None if self._snapshot_bytes is None else int(self._snapshot_bytes * self._sender.share),
                bandwidth=self._sender.bandwidth,
                answered=notice.id in self._answered,
            )
        )
        self._answered.add(notice.id)
        seconds_left = notice.seconds_left(self._clock.now())
        if notice.is_final and seconds_left is not None:
            self._queue.deadline = self._queue.deadline.within(seconds_left)
        if decision.upload_now:
            self._queue.urgent = True  # a snapshot that is staged from here on is urgent by its reason
            self.hurry()
        _LOG.info("attempt %d of %s: %s", self.token.attempt, self.uri, decision.why)
        return decision

    def _pending_bytes(self) -> int:
        transfer = self._sender.transfer
        under_way = transfer.total_bytes - transfer.sent_bytes if transfer else 0
        newest = next((seal for slot in list(self.spool.slots) if not slot.leased and (seal := slot.seal())), None)
        return under_way + int(newest.data_bytes * self._sender.share if newest else 0)

    def status(self) -> Message:
        """For `spotckpt status`. Takes no lock, so it may be a moment old."""
        transfer, failure, trainer = self._sender.transfer, self.backoff.failure or self.superseded, self.trainer
        return {
            "uri": self.uri,
            "run_id": self.token.run_id,
            "attempt": self.token.attempt,
            "state": self._state(),
            "slots": [slot.to_json() for slot in list(self.spool.slots)],
            "uploading": transfer.to_json() if transfer else None,
            "last_committed": self.token.last_committed,
            "trainer_pid": trainer.pid if trainer else None,
            "error": error_fields(failure) if failure else None,
        }

    def _state(self) -> str:
        if self._ended or self.superseded:
            return "superseded" if self.superseded else "released"
        if self.left:
            return "closing" if self.trainer and self.trainer.alive else "orphaned"
        return "training" if self.token.based else "claimed"

    # ---- the run's own thread

    def _work(self) -> None:
        while not self._ended:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001  the edge: a fault in one run must not end the agent
                _LOG.exception("attempt %d of %s: a fault in the agent", self.token.attempt, self.uri)
                self._failed(AgentError(f"fault in the agent: {type(error).__name__}: {error}", hint="see its log"))
        self._on_end(self)

    def _turn(self) -> None:
        with self._changed:
            idle = self.backoff.pausing or self.superseded is not None
            found = None if idle else self._queue.next(left=self.left)
            if found is not None:
                found[0].leased = self._sending = True
            elif not self._is_over():
                self._changed.wait(_IDLE_LOOK_S)
                return
        if found is not None:
            self._save(*found)
        else:
            self._finish()

    def _pending(self) -> list[tuple[SpoolSlot, Seal]]:
        return [] if self._ended else self._queue.pending()

    def _is_over(self) -> bool:
        now = self._clock.now()
        if self.trainer is None and self._left_at is None and now - self._known_since > self.token.stale_after_s:
            _LOG.warning("attempt %d of %s: its trainer did not come back", self.token.attempt, self.uri)
            self._left_at = now
        if self._left_at is None:
            return False
        if self.superseded is not None or not self._pending():
            return True
        if now - self._left_at > self._drain_limit_s:
            why = self._dropped = self.backoff.failure
            _LOG.error(
                "attempt %d of %s: given up after %.0f s: %s", self.token.attempt, self.uri, now - self._left_at, why
            )
            return True
        return False

    def _save(self, slot: SpoolSlot, seal: Seal) -> None:
        began = self._clock.now()
        try:
            if is_superseded(self._store, self.token.attempt):  # before the bytes: commit would tell only after them
                self._overtaken()
            self._sender.send(slot, seal)
            self._committed(slot, seal.id, began)
        except Superseded as error:
            self._supersede(error, seal.id)
        except UnreadableSlot as error:
            self._dropped = error
            self._failed(error)
            with self._changed:
                slot.free()
        except SpotckptError as error:
            self._failed(error)
        finally:
            with self._changed:
                slot.leased = self._sending = False
                self._sender.transfer = None
                self._changed.notify_all()

    def _require_ours(self) -> None:
        if self.superseded is not None:
            raise self.superseded

    def _committed(self, slot: SpoolSlot, snapshot: str, began: float) -> None:
        """Token, heartbeat, and only then the slot: whoever dies in between, nothing is told twice or forgotten."""
        with self._changed:
            self.spool.update(last_committed=snapshot, parent=snapshot)
            self._dropped = None
            self.backoff.succeeded()
        _LOG.info("%s is committed to %s", snapshot, self.uri)
        self._emit({"event": "committed", "uri": self.uri, "id": snapshot, "acknowledged": True})
        self._heart.beat()
        self._warn_of_overrun()
        with self._changed:
            self.spool.keep(slot)
            self._queue.committed(began)

    def _warn_of_overrun(self) -> None:
        """Says once that uploads take longer than a notice lasts; again if they had become short enough meanwhile."""
        transfer, bandwidth = self._sender.transfer, self._sender.bandwidth
        if transfer is None or bandwidth is None:
            return
        warning = overrun(transfer.total_bytes, bandwidth)
        if warning and not self._is_slow:
            _LOG.warning("%s: %s", self.uri, warning)
            self._warn(warning)
        self._is_slow = bool(warning)

    def _failed(self, error: SpotckptError) -> None:
        with self._changed:
            news = self.backoff.failed(error)
            self._changed.notify_all()
        if news:
            _LOG.warning("attempt %d of %s: %s (trying again)", self.token.attempt, self.uri, error)
            self._emit({"event": "error", "uri": self.uri, **error_fields(error)})

    def _overtaken(self) -> None:
        attempt = self.token.attempt
        self._supersede(
            Superseded(f"attempt {attempt + 1} owns {self.uri} now; attempt {attempt} writes no more"), None
        )

    def _supersede(self, error: Superseded, snapshot: str | None) -> None:
        if self.superseded is not None:
            return
        self.superseded = error
        self._heart.stop()
        _LOG.error("%s", error.message)
        self._emit({"event": "superseded", "uri": self.uri, "id": snapshot, "message": error.message})
        self._poke()

    def _finish(self) -> None:
        """Release, always last; a superseded attempt has nothing to release."""
        released = self.superseded is None and self._heart.release()
        self._heart.stop()
        with self._changed:
            self._lender.close()
            try:
                if self.superseded is not None:
                    self.spool.remove()
                else:
                    self.has_kept = self.spool.retire()
            except OSError as error:  # the next agent sweeps it
                _LOG.warning("%s cannot be cleared away: %s", self.spool.path, error)
            self._ended = True
            self._changed.notify_all()
        state = "is superseded" if self.superseded else "is released" if released else "could not be released"
        _LOG.info(
            "attempt %d of %s %s; last committed: %s", self.token.attempt, self.uri, state, self.token.last_committed
        )
