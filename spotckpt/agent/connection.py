"""One client's connection, served by a thread of its own; requests that may wait get a thread each."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from typing import BinaryIO, Protocol

from spotckpt.agent import protocol
from spotckpt.agent.opening import Abandoned
from spotckpt.agent.processes import Process, boot_id, start_time
from spotckpt.agent.protocol import MalformedMessage, Message
from spotckpt.errors import AgentError, SpoolError, SpotckptError, StopTraining

_LOG = logging.getLogger(__name__)

WAITING = frozenset({"open", "attach", "base", "prepare", "slot", "drain", "close"})
"""Requests that wait for the store, for another run, for memory or for an upload."""

_MOST_WAITING = 16
_SEND_TIMEOUT_S = 5


class Answerer(Protocol):
    """What the agent does with requests."""

    def answer(self, connection: Connection, request: Message) -> Message:
        """The reply's fields; errors are raised."""

    def greet(self, connection: Connection) -> Message:
        """The reply to hello."""

    def hung_up(self, connection: Connection) -> None:
        """Called once when the connection is over."""


class Connection:
    """A peer of our own user id.

    Attributes:
        process: the peer's, once it has said hello.
        pending: requests whose reply takes its time and is not sent yet.
        uris: the runs that it opened or attached to, whose events it gets.
        gone: its process has ended.
        closed: the connection is over.
    """

    def __init__(self, accepted: socket.socket, answerer: Answerer) -> None:
        self._socket = accepted
        self._answerer = answerer
        self._sending = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)
        self.pending: set[int] = set()
        self.process: Process | None = None
        self.uris: set[str] = set()
        self.gone = False
        self.closed = False
        # a client that does not read must not stop an upload: after this long it is hung up on
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        self._thread = threading.Thread(target=self._serve, name="connection", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def check(self) -> None:
        """Raises Abandoned if there is nobody to work for any more."""
        if self.gone or self.closed:
            raise Abandoned

    def send(self, message: Message) -> None:
        """Sends a reply or an event; a peer that does not take it is hung up on."""
        try:
            line = protocol.encode(message)
            with self._sending:
                self._socket.sendall(line)
        except OSError:
            self.hang_up()
        except AgentError as error:
            _LOG.error("a message could not be sent: %s", error)

    def send_soon(self, message: Message) -> None:
        """The same on a thread of its own: a client that does not read must not keep another's news waiting."""
        thread = threading.Thread(target=self.send, args=(message,), name="news", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there are no threads left
            self.send(message)

    def hang_up(self) -> None:
        """Ends the connection; the serving thread notices."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        try:
            _check_uid(self._socket)
            with self._socket.makefile("rb") as stream:
                while self._take(stream):
                    pass
        except (OSError, AgentError) as error:
            _LOG.debug("connection ended: %s", error)
        except Exception:  # noqa: BLE001  the top of a thread: what one client does must not end the agent
            _LOG.exception("a connection failed")
        finally:
            self.hang_up()
            self._answerer.hung_up(self)
            self._socket.close()

    def _take(self, stream: BinaryIO) -> bool:
        """Reads one request and sees to its answer; False at the end."""
        try:
            request = protocol.read_message(stream)
        except MalformedMessage as error:
            self.send({"reply": None, **protocol.error_fields(error)})
            return not error.fatal
        if request is None:
            return False
        if str(request.get("op")) not in WAITING:
            self._reply(request)
        elif self._waiting.acquire(blocking=False):
            self._begin(request)
        else:
            many = AgentError(f"more than {_MOST_WAITING} requests are waiting", hint="wait for their replies")
            self.send({"reply": request.get("call"), **protocol.error_fields(many)})
        return True

    def _begin(self, request: Message) -> None:
        self.pending.add(id(request))
        thread = threading.Thread(target=self._reply_later, args=(request,), name=str(request["op"]), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there are no threads left: the client asks again, or goes without
            self._waiting.release()
            self.pending.discard(id(request))
            none = SpoolError(f"the agent has no thread for {request['op']!r}: {error}", hint="see ulimit -u")
            self.send({"reply": request.get("call"), **protocol.error_fields(none)})

    def _reply_later(self, request: Message) -> None:
        try:
            self._reply(request)
        finally:
            self._waiting.release()
            self.pending.discard(id(request))

    def _reply(self, request: Message) -> None:
        number = request.get("call")
        try:
            fields = self._work(request)
        except Abandoned:
            return
        except (SpotckptError, StopTraining) as error:
            self.send({"reply": number, **protocol.error_fields(error)})
        except Exception as error:  # noqa: BLE001  the edge: a fault in one request is that request's answer
            _LOG.exception("request %r failed", request.get("op"))
            fault = AgentError(f"fault in the agent: {type(error).__name__}: {error}", hint="see its log")
            self.send({"reply": number, **protocol.error_fields(fault)})
        else:
            self.send({"reply": number, "ok": True, **fields})

    def _work(self, request: Message) -> Message:
        op = request.get("op")
        if op not in protocol.OPERATIONS:
            raise AgentError(f"request {op!r} is not known", hint="trainer and agent must be of the same version")
        if op == "hello":
            self._hello(request)
            return self._answerer.greet(self)
        if self.process is None:
            raise AgentError(f"request {op!r} before hello", hint="say hello first")
        return self._answerer.answer(self, request)

    def _hello(self, request: Message) -> None:
        if request.get("version") != protocol.VERSION:
            raise AgentError(
                f"the agent speaks version {protocol.VERSION}, the client {request.get('version')!r}",
                hint="restart the agent with the installed version of spotckpt",
            )
        pid, _ = _credentials(self._socket)
        start = start_time(pid) if pid else None
        if start is None or start != request.get("start_time") or request.get("boot_id") != boot_id():
            raise AgentError(
                f"the agent cannot see the client's process (pid {pid or request.get('pid')})",
                hint="run the agent in the PID namespace of the training",
            )
        self.process = Process(pid, start)


def _credentials(connected: socket.socket) -> tuple[int, int]:
    """pid (0 if outside our PID namespace) and uid of the peer, by the kernel: SO_PEERCRED of unix(7)."""
    pid, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _check_uid(connected: socket.socket) -> None:
    _, uid = _credentials(connected)
    if uid != os.getuid():
        raise AgentError(f"a client of uid {uid} is refused", hint="each user has an agent of their own")
