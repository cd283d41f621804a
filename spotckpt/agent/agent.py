"""The agent: its runs, its clients, and what it answers them."""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping

from spotckpt.agent import protocol
from spotckpt.agent.board import Board
from spotckpt.agent.commons import Commons
from spotckpt.agent.connection import Connection
from spotckpt.agent.fields import count_of, seconds_of, text_of, texts_of
from spotckpt.agent.log import about, fields
from spotckpt.agent.opening import Request, open_run, parse_environment
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.processes import Process, boot_id, pid_namespace
from spotckpt.agent.protocol import Message
from spotckpt.agent.run import Run
from spotckpt.agent.spool import RunSpool, Spool
from spotckpt.agent.spool_slot import SpoolSlot
from spotckpt.agent.token import Token
from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import AgentError, SpotckptError, Superseded
from spotckpt.notices.notice import Notice
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.records import Base, Holder

_LOG = logging.getLogger(__name__)

_FIRST_LOOK_S = 10.0
_LONGEST_REASON = 80
KEPT_S = 600.0
"""How long the newest committed snapshot of an ended attempt stays in the spool for its next one."""


class Agent:
    """Everything but the process: sockets, signals and the watcher are the service's.

    Args:
        spool: whose lock is held.
        options: the agent's.
        first_look: set once the sources of notices have been asked for the first time.
        watch_process: told of each process whose end matters.
        poke: wakes the service.
    """

    def __init__(
        self,
        spool: Spool,
        options: AgentOptions,
        *,
        first_look: threading.Event,
        watch_process: Callable[[Process], None],
        poke: Callable[[], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._spool = spool
        self._options = options
        self._first_look = first_look
        self._watch_process = watch_process
        self._poke = poke
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._opening: set[str] = set()
        self._promised: dict[str, Process] = {}
        self._kept: dict[str, tuple[RunSpool, Deadline]] = {}
        self._connections: set[Connection] = set()
        self._me = Process.current()
        self._commons = Commons(options, slots=self._slots, make_room=functools.partial(self.forget_kept, all=True))
        self.instance = ""
        self.board = Board(spool.path / "notices.json", self._announce, clock=clock)
        self._handlers: dict[str, Callable[[Connection, Message], Message]] = {
            "open": self._open,
            "base": self._base,
            "attach": self._attach,
            "prepare": self._prepare,
            "slot": self._slot,
            "where": self._where,
            "abort": self._abort,
            "sealed": self._sealed,
            "drain": self._drain,
            "close": self._drain,
            "status": lambda _, __: self.status(),
            "notify": self._notify,
        }

    # ---- for the service

    def adopt(self) -> None:
        """Goes on with the attempts that an earlier agent left in the spool."""
        for spool in self._spool.load():
            token = spool.token
            trainer: Process | None = Process(token.trainer_pid, token.trainer_start)
            here = token.boot_id == boot_id()
            if here and token.pid_namespace != pid_namespace():
                trainer = None
            with about(run=token.uri, attempt=token.attempt):
                _LOG.info("attempt %d of %s is taken over from an agent that ended", token.attempt, token.uri)
                try:
                    run = self._add(spool, trainer, None, self._holder_of(token, trainer), adopted=True)
                except SpotckptError as error:
                    _LOG.error("attempt %d of %s cannot be taken over: %s", token.attempt, token.uri, error)
                    continue
            if trainer is not None and not (here and trainer.alive):
                run.leave()

    def connected(self, accepted: socket.socket) -> None:
        """Serves a new client."""
        connection = Connection(accepted, self)
        with self._lock:
            self._connections.add(connection)
        connection.start()

    def process_gone(self, process: Process) -> None:
        """A trainer has ended: its openings are called off, what it sealed is uploaded, its attempts are released."""
        with self._lock:
            connections = [connection for connection in self._connections if connection.process == process]
            runs = [run for run in self._runs.values() if run.trainer == process]
        for connection in connections:
            connection.gone = True
            connection.hang_up()  # its forked workers may still hold the other end
        for run in runs:
            if not run.left:
                of_run = fields(run=run.uri, attempt=run.token.attempt)
                _LOG.warning("%s: its trainer %d is gone", run.uploads.name, process.pid, extra=of_run)
            run.leave()

    @property
    def busy(self) -> bool:
        """Whether there is a run, an opening or a living client."""
        with self._lock:
            return bool(self._runs or self._opening or self._connections)

    @property
    def has_open_runs(self) -> bool:
        """Whether an attempt is not released yet."""
        with self._lock:
            return bool(self._runs)

    @property
    def has_runs(self) -> bool:
        """Whether there is a run, or somebody waits for the reply that it ended."""
        with self._lock:
            return bool(self._runs) or any(found.pending for found in self._connections)

    def forget_kept(self, *, all: bool = False) -> None:
        """Removes what is kept of ended attempts and was not asked for in time; all of it when the agent ends."""
        with self._lock:
            due = [uri for uri, (_, until) in self._kept.items() if all or until.passed]
        for uri in due:
            if not self.begin_opening(uri, self._me):
                continue  # its next attempt is about to begin, and takes it over
            try:
                with self._lock:
                    spool, _ = self._kept.pop(uri, (None, None))
                if spool is not None:
                    spool.remove()
            except OSError as error:  # the next agent sweeps it
                _LOG.warning("what is kept of %s cannot be cleared away: %s", uri, error)
            finally:
                self.end_opening(uri)

    # ---- House, for the opening

    def final_notice(self) -> Notice | None:
        """See `House`. A machine without a metadata service does not delay anybody for long."""
        self._first_look.wait(_FIRST_LOOK_S)
        return self.board.final()

    def run_of(self, uri: str) -> Run | None:
        """See `House`."""
        with self._lock:
            return self._runs.get(uri)

    def is_attended(self, run: Run) -> bool:
        """See `House`."""
        return any(not connection.closed for connection in self._attending(run))

    def begin_opening(self, uri: str, trainer: Process) -> bool:
        """See `House`."""
        with self._lock:
            promised = self._promised.get(uri)
            is_another_s = promised is not None and promised != trainer and promised.alive
            if uri in self._runs or uri in self._opening or is_another_s:
                return False
            self._promised.pop(uri, None)
            self._opening.add(uri)
            return True

    def promise(self, uri: str, trainer: Process) -> None:
        """See `House`."""
        with self._lock:
            self._promised[uri] = trainer

    def end_opening(self, uri: str) -> None:
        """See `House`."""
        with self._lock:
            self._opening.discard(uri)

    def holder(self, trainer: Process) -> Holder:
        """See `House`."""
        return Holder(
            host=socket.gethostname(),
            instance=self.instance,
            boot_id=boot_id(),
            pid_namespace=pid_namespace(),
            agent_pid=self._me.pid,
            agent_start=self._me.start,
            trainer_pid=trainer.pid,
            trainer_start=trainer.start,
        )

    def _holder_of(self, token: Token, trainer: Process | None) -> Holder:
        here = token.boot_id == boot_id()
        return self.holder(trainer if here and trainer is not None else Process(0, 0))

    def add_run(self, token: Token, trainer: Process, environment: Mapping[str, str] | None, holder: Holder) -> Run:
        """See `House`."""
        with self._lock:
            self._kept.pop(token.uri, None)  # what it holds is the new attempt's
        run = self._add(self._spool.create(token), trainer, environment, holder, adopted=False)
        if not trainer.alive:
            run.leave()
        return run

    def _add(
        self,
        spool: RunSpool,
        trainer: Process | None,
        environment: Mapping[str, str] | None,
        holder: Holder,
        *,
        adopted: bool,
    ) -> Run:
        def emit(event: Message) -> None:
            for connection in self._attending(run):
                connection.send(event)

        run = Run(
            spool,
            trainer,
            environment=environment,
            holder=holder,
            options=self._options,
            commons=self._commons,
            emit=emit,
            on_end=self._run_ended,
            adopted=adopted,
            clock=self._clock,
        )
        with self._lock:
            self._runs[run.uri] = run
        if trainer is not None:
            self._watch_process(trainer)
        run.start()
        return run

    def _slots(self) -> list[SpoolSlot]:
        with self._lock:
            spools = [*(run.spool for run in self._runs.values()), *(spool for spool, _ in self._kept.values())]
        return [slot for spool in spools for slot in list(spool.slots)]

    def _attending(self, run: Run) -> list[Connection]:
        with self._lock:
            return [found for found in self._connections if run.uri in found.uris and found.process == run.trainer]

    def _run_ended(self, run: Run) -> None:
        with self._lock:
            if run.uploads.has_kept:
                self._kept[run.uri] = (run.spool, Deadline.after(KEPT_S, self._clock))
            if self._runs.get(run.uri) is run:
                del self._runs[run.uri]
            for connection in self._connections:
                connection.uris.discard(run.uri)
        self._poke()

    # ---- notices

    def _announce(self, notice: Notice) -> None:
        """Tells every client once; each trainer with what it means for its run."""
        with self._lock:
            runs = list(self._runs.values())
            idle = [found for found in self._connections if found.process is not None and not found.uris]
        for run in runs:
            event = self._notice_event(notice, run)
            for connection in self._attending(run):
                connection.send_soon(event)
        for connection in idle:
            connection.send_soon(self._notice_event(notice, None))

    def _notice_event(self, notice: Notice, run: Run | None) -> Message:
        now = self._clock.now()
        decision = run.answer(notice) if run is not None else None
        return {
            "event": "notice",
            "uri": run.uri if run is not None else None,
            "kind": notice.kind,
            "action": notice.action,
            "final": notice.is_final,
            "seconds_left": notice.seconds_left(now),
            "id": notice.id,
            "plan": decision.plan if decision else "last" if notice.is_final else "snapshot",
            "why": decision.why if decision else notice.describe(now),
        }

    # ---- Answerer, for the connections

    def greet(self, connection: Connection) -> Message:
        """The reply to hello."""
        assert connection.process is not None
        self._watch_process(connection.process)
        urgent = self.board.most_urgent()
        notice = self._notice_event(urgent, None) if urgent is not None else None
        return {"agent_pid": os.getpid(), "version": protocol.VERSION, "notice": notice}

    def hung_up(self, connection: Connection) -> None:
        """A connection is over; its runs go on as long as the process lives."""
        with self._lock:
            self._connections.discard(connection)
        self._poke()

    def answer(self, connection: Connection, request: Message) -> Message:
        """The reply's fields."""
        return self._handlers[request["op"]](connection, request)

    def _open(self, connection: Connection, message: Message) -> Message:
        assert connection.process is not None
        request = Request.parse(message)

        def say(text: str) -> None:
            connection.send({"event": "waiting", "call": message.get("call"), "message": text})

        run = open_run(self, request, connection.process, check=connection.check, say=say, clock=self._clock)
        connection.uris.add(run.uri)
        return {"attempt": run.token.attempt, "run_id": run.token.run_id, "highest": run.token.highest}

    def _attach(self, connection: Connection, message: Message) -> Message:
        assert connection.process is not None
        uri, attempt = text_of(message, "uri"), count_of(message, "attempt")
        run = self.run_of(uri)
        if run is not None and run.token.attempt > attempt:
            raise Superseded(f"attempt {run.token.attempt} owns {uri} now; attempt {attempt} writes no more")
        if run is None or run.token.attempt != attempt:
            raise AgentError(f"there is no attempt {attempt} of {uri} here", hint="open the run again")
        run.attach(connection.process, parse_environment(message))
        connection.uris.add(uri)
        return {"attempt": run.token.attempt, "last_committed": run.token.last_committed, "pace": str(run.pace_path)}

    def _base(self, connection: Connection, message: Message) -> Message:
        run = self._own(connection, message)
        snapshot = message.get("snapshot")
        run.write_base(
            Base(
                run.token.attempt,
                None if snapshot is None else str(SnapshotId.parse(str(snapshot))),
                str(message.get("selector") or "newest"),
                texts_of(message, "consumed"),
                texts_of(message, "skipped"),
            )
        )
        return {"pace": str(run.pace_path)}

    def _slot(self, connection: Connection, message: Message) -> Message:
        run = self._own(connection, message)
        slot = run.lend(
            count_of(message, "size_bytes"), step=count_of(message, "step"), wait_s=seconds_of(message, "wait_s") or 0.0
        )
        if slot is None or slot.grant is None:
            return {"busy": True, "wait": run.must_wait}
        return {
            "path": str(slot.path),
            "data_path": slot.grant.data_path,
            "generation": slot.grant.generation,
            "snapshot": slot.grant.id,
            "size_bytes": slot.grant.size_bytes,
        }

    def _prepare(self, connection: Connection, message: Message) -> Message:
        slots = self._own(connection, message).prepare(count_of(message, "size_bytes"))
        return {"slots": [{"path": str(slot.path), "data_path": str(slot.data_path)} for slot in slots]}

    def _where(self, connection: Connection, message: Message) -> Message:
        slot = self._own(connection, message).where(text_of(message, "snapshot"))
        return {} if slot is None else {"path": str(slot.path), "data_path": str(slot.data_path)}

    def _abort(self, connection: Connection, message: Message) -> Message:
        self._own(connection, message).abort(count_of(message, "generation"))
        return {}

    def _sealed(self, connection: Connection, message: Message) -> Message:
        self._own(connection, message).sealed(count_of(message, "generation"))
        return {}

    def _drain(self, connection: Connection, message: Message) -> Message:
        run = self._own(connection, message)
        seconds = seconds_of(message, "deadline_s")
        deadline = run.drain_limit() if seconds is None else Deadline.after(seconds, self._clock)

        def on_progress(transfer: Message) -> None:
            connection.send({"event": "progress", "call": message.get("call"), "uri": run.uri, **transfer})

        why = str(message.get("ended") or "closed")[:_LONGEST_REASON] if message["op"] == "close" else None
        return run.drain(deadline, close=why, on_progress=on_progress)

    def _own(self, connection: Connection, message: Message) -> Run:
        """The run that the message names, which must be the caller's."""
        uri = text_of(message, "uri")
        run = self.run_of(uri)
        if run is None or run.trainer != connection.process:
            raise AgentError(f"{uri} is not open in this process", hint="open it, or attach after an agent's end")
        return run

    def status(self) -> Message:
        """For `spotckpt status` and the service manager."""
        now = self._clock.now()
        with self._lock:
            runs = list(self._runs.values())
        notices = [
            {
                "kind": notice.kind,
                "action": notice.action,
                "final": notice.is_final,
                "seconds_left": notice.seconds_left(now),
                "id": notice.id,
            }
            for notice in self.board.in_force()
        ]
        agent = {
            "pid": os.getpid(),
            "private": self._options.private,
            "spool_dir": str(self._options.spool_dir),
            "runtime_dir": str(self._options.runtime_dir),
            "instance": self.instance,
        }
        return {"agent": agent, "notices": notices, "runs": [run.status() for run in runs]}

    def _notify(self, connection: Connection, message: Message) -> Message:
        del connection
        if message.get("clear"):
            self.board.clear()
            return {}
        notice = self.board.inject(
            str(message.get("action")), in_s=seconds_of(message, "in_s"), kind=str(message.get("kind") or "manual")
        )
        return {"notice_id": notice.id}
