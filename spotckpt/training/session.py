"""The trainer's side of the agent: one run, opened over the agent's socket, and what the agent has to say about it."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spotckpt.address import Selector
from spotckpt.agent.client import Client, OnEvent, Unanswered
from spotckpt.agent.pace import PaceWriter
from spotckpt.agent.protocol import Message, to_error
from spotckpt.agent.slots import Slot
from spotckpt.agent.spawn import ensure_agent
from spotckpt.config import Settings
from spotckpt.deadline import Deadline
from spotckpt.errors import (
    AgentError,
    SpotckptError,
    Superseded,
)
from spotckpt.store.open import aws_environment
from spotckpt.training.news import News, Stop
from spotckpt.training.say import Progress, say
from spotckpt.training.signals import TermSignal

CALL_TIMEOUT_S = 15.0
SLOT_BYTES_PER_S = 100e6  # a slot's first grant touches fresh memory, which a hypervisor backs lazily
NUM_SLOTS = 3
ONE_SLOT_LOOK_S = 1.0
REATTACH_TRIES = 3
START_TIMEOUT_S = 30.0
REVIVE_PAUSE_S = 30.0
SILENT_S = 60.0  # an agent that is there and does not answer is not asked more often for periodic snapshots


@dataclass(frozen=True)
class Drained:
    """How a drain ended: what is committed by now, and why not the newest, if it is not."""

    committed: str | None
    error: SpotckptError | Superseded | None = None


class Session:
    """A run that this process trains. The loop looks at `attention`; everything else hides behind it.

    News arrives on other threads; it becomes flags here, which the loop reads at its next boundary. When the agent goes
    the training goes on, and a thread brings another one back at once: until then nobody watches for notices, and the
    attempt shows no sign of life.
    """

    def __init__(self, uri: str, settings: Settings) -> None:
        self.uri = uri
        self.settings = settings
        self.attempt = 0
        self.news = News(uri)
        self._silent = Deadline.after(0.0)
        self._client: Client | None = None
        self._lost = True
        self._starting = True
        self._closed = threading.Event()
        self._connections = 0
        self._attaching = threading.Lock()
        self._reviving: threading.Thread | None = None
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._environment = aws_environment()
        self._pace: PaceWriter | None = None
        self._term = TermSignal(self._on_sigterm)

    # Starting

    def open(self, selector: Selector, arguments: Mapping[str, Any]) -> Message:
        """Finds or starts an agent, waits for this run's turn and claims the next attempt.

        Returns:
            The agent's reply: `attempt`, `run_id` and `highest`, the attempt before.

        Raises:
            Interrupted: SIGTERM came meanwhile.
            SpotckptError: as the agent says.
        """
        self._term.install()
        reply = self._ask(
            "open",
            on_event=_say_waiting,
            uri=self.uri,
            selector=str(selector),
            settings=self._settings_fields(),
            environment=self._environment,
            arguments=dict(arguments),
        )
        self.attempt = int(reply["attempt"])
        self.news.opening = False
        # While it waited for us, the agent heard of notices that are over by now; these are in force.
        for notice in self._ask("status").get("notices", []):
            self.news.hear_notice(notice)
        return reply

    def record_base(
        self, snapshot: str | None, *, selector: str, consumed: Sequence[str], skipped: Sequence[str]
    ) -> None:
        """Lets the agent write what this attempt goes on from; from here on snapshots may be staged.

        Raises:
            Interrupted: SIGTERM or a notice came meanwhile.
            SpotckptError: as the agent says.
        """
        reply = self._ask(
            "base",
            uri=self.uri,
            snapshot=snapshot,
            selector=selector,
            consumed=list(consumed),
            skipped=list(skipped),
        )
        self._open_pace(reply)

    def where(self, snapshot: str) -> tuple[Path, Path] | None:
        """A slot of this machine's spool that holds the snapshot: its directory and its data file. Before the base."""
        try:
            reply = self._call("where", timeout=CALL_TIMEOUT_S, uri=self.uri, snapshot=snapshot)
        except AgentError:
            return None
        return (Path(reply["path"]), Path(reply["data_path"])) if "path" in reply else None

    def started(self) -> None:
        """From here on SIGTERM is a notice like others: the loop stops at its next boundary."""
        self._starting = False
        self.news.attention = self.news.early
        self.news.raise_if_stopped()
        if self._lost:
            self._start_reviving()

    # While training

    def passed(self, step: int) -> None:
        """Tells of a boundary, whether or not anybody looks."""
        if self._pace is not None:
            self._pace.boundary(step)

    def _open_pace(self, reply: Message) -> None:
        """Without it the agent only guesses when a boundary comes."""
        with contextlib.suppress(OSError, KeyError):
            if self._pace is None or not self._pace.path.exists():  # the next agent goes on with the same file
                self._pace = PaceWriter(Path(reply["pace"]))

    def prepare(self, size_bytes: int) -> list[tuple[Path, Path]]:
        """Has the agent allocate the slots; (directory, data file) of each. It takes its time: not for the loop."""
        with contextlib.suppress(Unreachable, Unanswered):
            timeout = CALL_TIMEOUT_S + NUM_SLOTS * size_bytes / SLOT_BYTES_PER_S
            reply = self._call("prepare", timeout=timeout, uri=self.uri, size_bytes=size_bytes)
            return [(Path(slot["path"]), Path(slot["data_path"])) for slot in reply["slots"]]
        return []

    def slot(self, size_bytes: int, step: int, *, wait_s: float = 0.0) -> Slot | None:
        """A place for a snapshot, or None when all stay taken for so long or no agent answers (which is said).

        Where there is room for one slot only, this waits for it, until the training must stop.

        Raises:
            SpoolError: there is no room for even one.
        """
        while True:
            reply = self._slot(size_bytes, step, wait_s)
            if reply is None or not reply.get("busy"):
                return None if reply is None else Slot.from_reply(reply)
            if not reply.get("wait") or self.news.attention:
                return None
            wait_s = ONE_SLOT_LOOK_S

    def _slot(self, size_bytes: int, step: int, wait_s: float) -> Message | None:
        if not wait_s and not self._silent.passed:
            return None
        timeout = CALL_TIMEOUT_S + size_bytes / SLOT_BYTES_PER_S + wait_s
        for _ in range(2):
            if self._lost and not self._revived(wait_s):
                return None
            try:
                return self._call(
                    "slot", timeout=timeout, uri=self.uri, size_bytes=size_bytes, step=step, wait_s=wait_s
                )
            except Unreachable:
                continue
            except Unanswered as error:
                say(f"warning: {error}; training goes on without this snapshot")
                self._silent = Deadline.after(SILENT_S)
                return None
        return None

    def sealed(self, slot: Slot) -> None:
        """Tells the agent of a sealed slot. The seal itself is on the disk: an agent that has gone finds it later."""
        client = self._client
        if client is not None:
            with contextlib.suppress(AgentError):
                client.tell("sealed", uri=self.uri, generation=slot.generation)

    def abort(self, slot: Slot) -> None:
        """Gives an unsealed slot back. Whatever the agent says: what made the caller give it up is the error to see."""
        with contextlib.suppress(SpotckptError, Superseded):
            self._call("abort", timeout=CALL_TIMEOUT_S, uri=self.uri, generation=slot.generation)

    # Ending

    def release(self, seconds: float | None, *, why: str) -> Drained:
        """Waits until the newest sealed snapshot is committed or given up, then gives the attempt up for the next one.

        If the agent goes meanwhile, a new one is asked.

        Args:
            seconds: how long to wait; None for as long as the agent tries.
            why: the attempt is over, in a few words for its last heartbeat.
        """
        deadline = Deadline.after(float("inf") if seconds is None else seconds)
        for remaining in reversed(range(REATTACH_TRIES)):
            left = None if seconds is None else deadline.seconds_left
            try:
                self._ensure_attached(deadline)
                reply = self._call(
                    "close",
                    timeout=None if left is None else left + CALL_TIMEOUT_S,
                    on_event=_progress_shown(),
                    uri=self.uri,
                    deadline_s=left,
                    ended=why,
                )
            except Unreachable as error:
                if not remaining or deadline.passed:
                    raise AgentError(error.message, hint=error.hint) from error
                continue
            return _drained(reply)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Hangs up and ends the threads; the agent releases a run that was not released. Idempotent."""
        if os.getpid() != self._owner:
            return
        self._term.close()
        self._closed.set()
        with self._lock:
            client, self._client = self._client, None
            self._lost = True
        if client is not None:
            client.close()

    # Inside

    def _call(self, op: str, *, timeout: float | None, on_event: OnEvent | None = None, **fields: Any) -> Message:
        """A call that tells an agent out of reach (`Unreachable`) from an agent that says no."""
        client = self._client
        if client is None:
            raise Unreachable("there is no agent", hint="it is being started again")
        try:
            return client.call(op, timeout=timeout, on_event=on_event, **fields)
        except AgentError as error:
            if type(error) is AgentError and client.lost:
                self._lost = True
                raise Unreachable(error.message, hint=error.hint) from error
            raise

    def _ask(self, op: str, *, on_event: OnEvent | None = None, **fields: Any) -> Message:
        """A call of the start: from another agent if one goes meanwhile, and until SIGTERM or a notice."""
        timeout = None if op == "open" else CALL_TIMEOUT_S + 2 * self.settings.call_timeout_s
        for remaining in reversed(range(REATTACH_TRIES)):
            try:
                self._ensure_attached()
                # `_on_sigterm` sets `stop` and then looks for a client to hang up; here it is the other way round
                self.news.raise_if_stopped()
                return self._call(op, timeout=timeout, on_event=on_event, **fields)
            except AgentError as error:
                self.news.raise_if_stopped()
                if not isinstance(error, Unreachable) or not remaining:
                    raise
        raise AssertionError("unreachable")

    def _connect(self, timeout: float) -> None:
        self._connections += 1
        on_event = functools.partial(self._on_event, self._connections)
        client = ensure_agent(self.settings, on_event=on_event, timeout=timeout, check=self._check_start)
        with self._lock:
            closed = self._closed.is_set()
            if not closed:
                self._client, self._lost = client, client.lost
        if closed:
            client.close()
            raise AgentError("the run was closed while an agent was started", hint="open it again")
        if client.notice is not None and not self._starting:
            self._on_event(self._connections, {"event": "notice", **client.notice})

    def _check_start(self) -> None:
        """SIGTERM's grace is not spent on starting an agent for a training that has not begun."""
        if self._starting:
            self.news.raise_if_stopped()

    def _ensure_attached(self, deadline: Deadline | None = None) -> None:
        """Finds or starts an agent, if there is none or the last one has gone, and goes on with this attempt there."""
        with self._attaching:
            if not self._lost:
                return
            old = self._client
            self._connect(START_TIMEOUT_S if deadline is None else min(START_TIMEOUT_S, deadline.seconds_left + 1.0))
            if old is not None:
                old.close()
            if not self.attempt:
                return
            try:
                reply = self._call(
                    "attach",
                    timeout=CALL_TIMEOUT_S,
                    uri=self.uri,
                    attempt=self.attempt,
                    environment=self._environment,
                )
            except BaseException:
                self._lost = True
                raise
            self.news.committed = reply.get("last_committed") or self.news.committed
            self._open_pace(reply)

    def _revived(self, wait_s: float) -> bool:
        """Brings an agent back: at once, for a snapshot that is worth waiting for; else while the training goes on."""
        reviving = self._start_reviving()
        if wait_s > 0:
            reviving.join(wait_s)
        return wait_s > 0 and not self._lost

    def _start_reviving(self) -> threading.Thread:
        with self._lock:
            if self._reviving is None or not self._reviving.is_alive():
                say("warning: the agent has gone; training goes on, another one is being started")
                self._reviving = threading.Thread(target=self._revive, name="spotckpt-revive", daemon=True)
                self._reviving.start()
            return self._reviving

    def _revive(self) -> None:
        """On a thread of its own: until there is an agent again, or the run is closed."""
        pause_s, said = 1.0, ""
        while not self._closed.is_set():
            try:
                self._ensure_attached()
            except SpotckptError as error:
                if str(error) != said and not self._closed.is_set():
                    said = str(error)
                    say(f"warning: {error}; training goes on, an agent is looked for again and again")
            except Superseded as error:
                self.news.supersede(error)
                return
            else:
                say("the new agent has taken over")
                return
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, REVIVE_PAUSE_S)

    def _settings_fields(self) -> Message:
        names = ("stale_after_s", "call_timeout_s", "upload_every_s", "upload_limit", "reserve_s", "takeover")
        return {**{name: getattr(self.settings, name) for name in names}, "keep": str(self.settings.keep or "")}

    def _on_event(self, connection: int, message: Message) -> None:
        """On the reader thread. An old connection's last words say nothing of the new one."""
        if connection != self._connections:
            return
        self.news.hear(message)
        if message.get("event") == "lost":
            self._lost = True
            if not self._starting and not self._closed.is_set():
                self._start_reviving()

    def _on_sigterm(self) -> None:
        """On the signal's thread."""
        self.news.stop_for(Stop("SIGTERM", Deadline.after(self.settings.sigterm_grace_s)))
        self.news.attention = True
        client = self._client
        if client is None:
            return
        if self._starting:
            client.close()  # wakes a call that waits for its turn
            return
        with contextlib.suppress(AgentError):  # what is sealed goes at once, whenever the loop comes to a boundary
            client.call("drain", timeout=CALL_TIMEOUT_S, uri=self.uri, deadline_s=0)


class Unreachable(AgentError):
    """Nobody answers at the socket: another agent may be found or started."""


def _progress_shown() -> OnEvent:
    shown = Progress("uploading the last snapshot", "bytes")

    def on_event(message: Message) -> None:
        if message.get("event") == "progress":
            shown(int(message["sent_bytes"]), int(message["total_bytes"]))

    return on_event


def _drained(reply: Message) -> Drained:
    failure = to_error(reply["failure"]) if reply.get("failure") else None
    return Drained(reply.get("committed"), failure if isinstance(failure, SpotckptError | Superseded) else None)


def _say_waiting(message: Message) -> None:
    if message.get("event") == "waiting":
        say(str(message.get("message")))
