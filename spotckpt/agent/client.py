"""A connection to the agent, for trainers and for the command line."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spotckpt.agent import protocol
from spotckpt.agent.processes import boot_id, start_time
from spotckpt.agent.protocol import Message
from spotckpt.errors import AgentError

OnEvent = Callable[[Message], None]

LOST: Message = {"event": "lost"}
"""Delivered once when the agent's end of the connection goes, unless `close` was called."""


class Unanswered(AgentError):
    """The agent is there and did not answer in time: what it did is unknown."""


class Client:
    """One connection. Calls may come from several threads; events arrive on the reader thread.

    Attributes:
        agent_pid: the agent's process.
        notice: the notice in force when the connection was made, as in the event `notice`, or None.
        lost: whether the agent's end has gone; calls raise then. Reconnecting is the caller's business.
    """

    def __init__(self, connected: socket.socket, on_event: OnEvent | None) -> None:
        self._socket = connected
        self._on_event = on_event
        self._numbers = itertools.count(1)
        self._replies: dict[int, queue.SimpleQueue[Message]] = {}
        self._callbacks: dict[int, OnEvent] = {}
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._owner = os.getpid()
        self._closing = False
        self.lost = False
        self.agent_pid = 0
        self.notice: Message | None = None
        self._reader = threading.Thread(target=self._read, name="spotckpt-events", daemon=True)

    @classmethod
    def connect(cls, path: Path | str, *, on_event: OnEvent | None = None, timeout: float = 10.0) -> Client:
        """Connects and says hello for this process.

        Args:
            path: the agent's socket.
            on_event: called on the reader thread with every event; it must not call the agent.
            timeout: seconds until the agent must have answered.

        Raises:
            AgentError: nobody listens there, or it does not answer, or it speaks another version.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(timeout)
            connected.connect(str(path))
            connected.settimeout(None)
        except OSError as error:
            connected.close()
            raise AgentError(
                f"no agent answers at {path}: {error.strerror or error}", hint="start one with: spotckpt agent"
            ) from error
        client = cls(connected, on_event)
        client._reader.start()
        try:
            client._hello(timeout)
        except AgentError:
            client.close()
            raise
        return client

    def _hello(self, timeout: float) -> None:
        pid = os.getpid()
        reply = self.call(
            "hello", timeout=timeout, version=protocol.VERSION, pid=pid, start_time=start_time(pid), boot_id=boot_id()
        )
        self.agent_pid = int(reply["agent_pid"])
        self.notice = reply.get("notice")

    def call(self, op: str, *, timeout: float | None, on_event: OnEvent | None = None, **fields: Any) -> Message:
        """Asks and waits for the reply.

        Args:
            op: one of `protocol.OPERATIONS`.
            timeout: seconds; None waits as long as the agent lives.
            on_event: called with the events of this very call (`waiting`, `progress`), besides the connection's own.
            fields: the request's other fields.

        Raises:
            AgentError: the agent has gone. What it did is unknown then.
            Unanswered: it did not answer in time.
            SpotckptError, StopTraining: of the class that the agent raised.
        """
        if os.getpid() != self._owner:
            raise AgentError(
                "the agent was called from a forked process", hint="use spotckpt in the process that began"
            )
        number = next(self._numbers)
        replies: queue.SimpleQueue[Message] = queue.SimpleQueue()
        line = protocol.encode({"op": op, "call": number, **fields})
        with self._lock:
            self._replies[number] = replies
            if on_event is not None:
                self._callbacks[number] = on_event
        try:
            self._send(op, line)
            reply = replies.get(timeout=timeout)
        except queue.Empty:
            raise Unanswered(f"the agent did not answer {op!r} within {timeout:g} s", hint="see its log") from None
        finally:
            with self._lock:
                self._replies.pop(number, None)
                self._callbacks.pop(number, None)
        if "error" in reply and not reply.get("ok"):
            raise protocol.to_error(reply)
        return reply

    def tell(self, op: str, **fields: Any) -> None:
        """Asks without waiting for the reply, which nobody will see.

        Raises:
            AgentError: the agent has gone.
        """
        self._send(op, protocol.encode({"op": op, "call": next(self._numbers), **fields}))

    def _send(self, op: str, line: bytes) -> None:
        try:
            with self._send_lock:
                if self.lost:
                    raise AgentError(f"the agent has gone before {op!r}", hint="see its log")
                self._socket.sendall(line)
        except OSError as error:
            self.lost = True  # whoever reads may not have noticed yet
            raise AgentError(f"the agent has gone at {op!r}: {error}", hint="see its log") from error

    def _read(self) -> None:
        try:
            # a line that is no message means that the other end is no agent of ours: as good as gone
            with contextlib.suppress(OSError, AgentError, ValueError), self._socket.makefile("rb") as stream:
                while (message := protocol.read_message(stream)) is not None:
                    self._deliver(message)
        finally:
            self._hung_up()

    def _hung_up(self) -> None:
        gone = {"error": "AgentError", "message": "the agent has gone", "hint": "see its log"}
        with self._lock:
            self.lost = True
            waiting = list(self._replies.values())
        for replies in waiting:
            replies.put(gone)
        if self._on_event is not None and not self._closing:
            self._on_event(dict(LOST))

    def _deliver(self, message: Message) -> None:
        with self._lock:
            replies = self._replies.get(message.get("reply", 0))
            callback = self._callbacks.get(message.get("call", 0))
        if "event" not in message:
            if replies is not None:
                replies.put(message)
            return
        for receiver in (callback, self._on_event):
            if receiver is not None:
                receiver(message)

    def close(self) -> None:
        """Hangs up. A run that is open stays so: the agent watches the process, not the connection."""
        self._closing = True
        if os.getpid() == self._owner:  # a forked child only drops its descriptor: the connection is the parent's
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            if self._reader.is_alive() and threading.current_thread() is not self._reader:
                self._reader.join(timeout=5.0)
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
