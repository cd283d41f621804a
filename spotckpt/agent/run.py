"""One open attempt, as its trainer and the agent ask of it. What it sends, it sends on a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from spotckpt.agent.answering import Answers
from spotckpt.agent.commons import Commons
from spotckpt.agent.draining import drain
from spotckpt.agent.log import about
from spotckpt.agent.losses import find_lost, unsaved
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.pace import PACE_NAME
from spotckpt.agent.planner import Decision
from spotckpt.agent.processes import Process
from spotckpt.agent.protocol import Message, error_fields
from spotckpt.agent.spool import RunSpool
from spotckpt.agent.spool_slot import SpoolSlot
from spotckpt.agent.token import Token
from spotckpt.agent.uploading import Uploads
from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import AgentError, SpoolError, Superseded
from spotckpt.notices.notice import Notice
from spotckpt.redact import redacted
from spotckpt.snapshot.attempts import write_base
from spotckpt.snapshot.losses import Lost
from spotckpt.snapshot.open import open_run_store
from spotckpt.snapshot.records import Base, Holder
from spotckpt.store.base import Store

_LOG = logging.getLogger(__name__)

_LOOK_S = 10.0
"""For what the last interruption has cost, which is good to know and not worth waiting for."""


class Run:
    """An attempt held by this agent.

    Args:
        spool: its token and slots.
        trainer: the process that trains; None if that cannot be told (another PID namespace): then it is taken for
            gone unless it attaches before the attempt would be stale.
        environment: the trainer's AWS_* variables; None for the agent's own.
        holder: this agent and the trainer, for heartbeats.
        options: the agent's.
        commons: what the agent's runs share.
        emit: sends an event to the trainers of this run.
        on_end: called once, on the run's thread, when the attempt is over and its files are gone.
        adopted: found in the spool, from an agent that died.

    Attributes:
        uploads: what it sends, and how far that has come.
    """

    def __init__(
        self,
        spool: RunSpool,
        trainer: Process | None,
        *,
        environment: Mapping[str, str] | None,
        holder: Holder,
        options: AgentOptions,
        commons: Commons,
        emit: Callable[[Message], None],
        on_end: Callable[[Run], None],
        adopted: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.spool = spool
        self.trainer = trainer
        self.uri = spool.token.uri
        self._clock = clock
        self._share = commons.share()
        self.uploads = Uploads(
            spool,
            self._open_store(environment),
            holder=holder,
            options=options,
            commons=commons,
            emit=emit,
            on_end=lambda: on_end(self),
            adopted=adopted,
            clock=clock,
        )
        self.uploads.sender.store = self._open_store(environment, sent=self.uploads.sender.gone)
        if trainer is None:
            self.uploads.return_by = Deadline.after(self.token.stale_after_s, clock)
        self._adopted = adopted
        if not adopted:
            self.pace_path.unlink(missing_ok=True)  # of an earlier attempt, whose newest snapshot is kept there
        self._answers = Answers(self.uploads, tell=emit, clock=clock)

    def start(self) -> None:
        """Begins to beat and to upload. A new attempt's first heartbeat is written before this returns."""
        if not self._adopted:
            self.uploads.heart.beat()
        if self.trainer is not None or not self._adopted:
            self.uploads.heart.start()
        self.uploads.start()

    @property
    def token(self) -> Token:
        """How far it has come."""
        return self.spool.token

    @property
    def ended(self) -> bool:
        """Whether it is over: released, or dropped."""
        return self.uploads.ended

    @property
    def left(self) -> bool:
        """Whether the trainer has closed it or is gone."""
        return self.uploads.left_at is not None

    @property
    def pace_path(self) -> Path:
        """Where the trainer writes its boundaries."""
        return self.spool.path / PACE_NAME

    def _open_store(self, environment: Mapping[str, str] | None, sent: Callable[[int], None] | None = None) -> Store:
        token = self.token
        return open_run_store(
            self.uri,
            environment=environment,
            call_timeout_s=token.call_timeout_s,
            bandwidth_limit=token.upload_limit or None,
            share=self._share,
            sent=sent,
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
            self.uploads.heart.start()
        self.use_environment(environment)

    def use_environment(self, environment: Mapping[str, str] | None) -> None:
        """Goes on with other credentials, at once."""
        self.uploads.store = self._open_store(environment)
        self.uploads.sender.store = self._open_store(environment, sent=self.uploads.sender.gone)
        self.uploads.hurry()

    def write_base(self, base: Base) -> None:
        """Records what the attempt continues; from here snapshots may be committed. Raises as the function does."""
        self._require_open()
        store = self.uploads.store
        write_base(store, base)
        with about(run=self.uri, attempt=self.token.attempt):
            look = Deadline.after(min(self.token.call_timeout_s, _LOOK_S), self._clock)
            lost = find_lost(store, base, highest=self.token.highest, deadline=look)
            with self.uploads.changed:
                self.spool.update(based=True, parent=base.snapshot, lost=lost)
            cost = f"; the interruption before has cost {lost.steps} steps, {lost.seconds:.0f} s" if lost else ""
            _LOG.info("%s continues %s%s", self.uploads.name, base.snapshot or "nothing: a new run", cost)

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

        self.uploads.snapshot_bytes = size_bytes
        return self.uploads.lender.lend(
            size_bytes, step=step, deadline=Deadline.after(wait_s, self._clock), check=check
        )

    def prepare(self, size_bytes: int) -> list[SpoolSlot]:
        """Allocates the memory of the slots; those that have it."""
        self._require_open()
        return self.uploads.lender.prepare(size_bytes)

    @property
    def must_wait(self) -> bool:
        """Whether there is one slot only, so that a snapshot waits for the upload before; not for one that fails."""
        return self.uploads.lender.only_one and self.uploads.backoff.failure is None

    def where(self, snapshot: str) -> SpoolSlot | None:
        """The slot that still holds a committed snapshot's bytes; nobody writes there before the base is recorded."""
        with self.uploads.changed:
            return None if self.token.based else self.spool.holding(snapshot)

    def abort(self, generation: int) -> None:
        """Frees a slot that was granted and not sealed; nothing if there is no such grant."""
        with self.uploads.changed:
            slot = self.spool.find(generation)
            if slot is not None and not slot.leased:
                slot.free()
            self.uploads.changed.notify_all()

    def sealed(self, generation: int) -> None:
        """Looks at the slots now.

        Raises:
            SpoolError: there is no valid seal of that generation.
        """
        with self.uploads.changed:
            slot = self.spool.find(generation)
            if slot is None or slot.seal() is None:
                # it may have been uploaded, or dropped for a newer one, between the seal and this nudge
                if slot is not None:
                    raise SpoolError(f"{slot.path} has no seal of generation {generation}", hint="stage it again")
                return
        self.uploads.hurry()

    def drain(self, deadline: Deadline, *, close: str | None, on_progress: Callable[[Message], None]) -> Message:
        """See `drain`."""
        return drain(self.uploads, deadline, close=close, on_progress=on_progress)

    def drain_limit(self) -> Deadline:
        """How long a drain without a deadline takes at most."""
        return Deadline.after(self.uploads.drain_limit_s, self._clock)

    def _require_open(self) -> None:
        self.uploads.require_ours()
        if self.uploads.overtaken is not None:
            raise self.uploads.overtaken
        if self.uploads.ended or self.left:
            raise AgentError(f"attempt {self.token.attempt} of {self.uri} is closed", hint="open the run again")

    # ---- for the agent

    def leave(self) -> None:
        """The trainer has closed the run or is gone: upload what is sealed, then release. Never blocks."""
        self.uploads.leave()

    def give_way(self, to: Process) -> None:
        """Another process of this machine takes the run over: the trainer must stop. What is sealed goes before."""
        attempt = self.token.attempt
        self.uploads.give_way(Superseded(f"process {to.pid} takes {self.uri} over; attempt {attempt} writes no more"))

    def answer(self, notice: Notice) -> Decision:
        """What this run's part in a notice is; what the agent has to do for it is begun."""
        with about(run=self.uri, attempt=self.token.attempt):
            return self._answers.answer(notice)

    def status(self) -> Message:
        """For `spotckpt status`. Takes no lock, so it may be a moment old."""
        uploads, trainer = self.uploads, self.trainer
        transfer, failure = uploads.sender.transfer, uploads.backoff.failure or uploads.superseded
        return {
            "uri": redacted(self.uri),
            "run_id": self.token.run_id,
            "attempt": self.token.attempt,
            "state": self._state(),
            "slots": [slot.to_json() for slot in list(self.spool.slots)],
            "uploading": transfer.to_json() if transfer else None,
            "last_committed": self.token.last_committed,
            "unsaved": _json(unsaved(self.spool)),
            "lost": _json(self.token.lost),
            "trainer_pid": trainer.pid if trainer else None,
            "error": error_fields(failure) if failure else None,
        }

    def _state(self) -> str:
        if self.uploads.ended or self.uploads.superseded:
            return "superseded" if self.uploads.superseded else "released"
        if self.left:
            return "closing" if self.trainer and self.trainer.alive else "orphaned"
        return "training" if self.token.based else "claimed"


def _json(lost: Lost | None) -> Message | None:
    return None if lost is None else lost.to_json()
