"""One connection to a server, with or without TLS, on which no wait outlasts the deadline of what it is used for.

Bodies go from the caller's memory to the socket and back without a copy, and with as few turns through Python as may
be: on a plain socket the kernel sends or receives the whole of a large buffer, and its own time-outs
(socket(7), SO_SNDTIMEO) end a wait, telling how many bytes went before.
"""

from __future__ import annotations

import base64
import functools
import io
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPResponse
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from spotckpt.deadline import Deadline
from spotckpt.store.bounded import in_time
from spotckpt.store.halt import Halt

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 20.0
"""A connection on which nothing moves for so long is given up, even when the deadline is far."""
_SMALL_BYTES = 64 << 10
_JOINED_BYTES = 256 << 10
_PACED_BYTES = 64 << 10
_COUNTED_BYTES = 1 << 20
_FIRST_BYTES = 64 << 10
_WAITING_BYTES = 256 << 10
"""What may wait in the kernel unsent: else it takes megabytes a connection at once, which look like a fast line."""


@dataclass(frozen=True)
class Limits:
    """What an exchange must keep to.

    Attributes:
        deadline: when it is over.
        halt: ends it from another thread.
        pace: called before that many bytes of a body are sent; may wait.
        sent: called after that many bytes of a body were handed to the kernel; raising in it ends the exchange.
    """

    deadline: Deadline
    halt: Halt = field(default_factory=Halt)
    pace: Callable[[int], None] | None = None
    sent: Callable[[int], None] | None = None

    def seconds_left(self) -> float:
        """Until the deadline.

        Raises:
            TimeoutError: nothing is left, or the transfer is given up.
        """
        left = self.deadline.seconds_left
        if left <= 0 or self.halt.is_set:
            raise TimeoutError
        return left


Origin = tuple[str, str, int]
"""Scheme, host and port."""


class Connection:
    """A socket that one thread uses at a time; any thread may `interrupt` it.

    Attributes:
        origin: the server.
        through_proxy: requests must name their server, as a proxy reads them.
        proxy_headers: what a proxy wants to know of who asks it.
        has_sent: the request under way, or some of it, may have reached the server.
        used_at: when it was last given back, on the deadline's clock.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.through_proxy = False
        self.proxy_headers: dict[str, str] = {}
        self.has_sent = False
        self.used_at = 0.0
        self._socket: socket.socket | None = None
        self._lines: _Plain | _Tls | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""
        return self._socket is not None

    @property
    def is_quiet(self) -> bool:
        """Whether the server has neither closed it nor said anything of its own accord."""
        assert self._socket is not None
        try:
            # not the method of an SSLSocket: what has come matters here, not what it means
            socket.socket.recv(self._socket, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def open(self, limits: Limits, *, proxy: str | None, tls: ssl.SSLContext | None) -> None:
        """Connects. `proxy` is the URL of one to go through."""
        host, port = self.origin[1:]
        if proxy is not None:
            url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            host, port = url.hostname or "", url.port or 80
            self.proxy_headers = _credentials(url)
        self._socket = _connected(host, port, limits)
        self._lines = _Plain(self._socket)
        self.through_proxy = proxy is not None and tls is None
        if tls is None:
            return
        if proxy is not None:
            self._tunnel(limits)
        self._socket.settimeout(min(CONNECT_TIMEOUT_S, limits.seconds_left()))
        self._socket = tls.wrap_socket(self._socket, server_hostname=self.origin[1])
        self._lines = _Tls(self._socket)

    def send(self, head: bytes, body: Sequence[memoryview], limits: Limits) -> None:
        """Sends a request."""
        assert self._lines is not None
        self.has_sent = True
        self._lines.send(memoryview(head), limits)
        for piece in joined(body):
            for part in _portions(piece, limits):
                if limits.pace is not None:
                    limits.pace(len(part))
                self._lines.send(part, limits)
                if limits.sent is not None:
                    limits.sent(len(part))

    def answer(self, method: str, limits: Limits) -> HTTPResponse:
        """Reads the head of the answer; its body is read within the same limits."""
        lines = self._lines
        assert lines is not None
        readable: Any = _Readable(lambda buffer: lines.receive(buffer, limits))
        response = HTTPResponse(readable, method=method)
        response.begin()
        return response

    def require_passed(self, response: HTTPResponse) -> None:
        """Raises ConnectionError if the answer is not the server's but a proxy's, who wants to know who asks."""
        if self.through_proxy and response.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            raise _refused(response)

    def interrupt(self) -> None:
        """Ends whatever waits for it."""
        found = self._socket
        if found is not None:
            try:
                # not the method of an SSLSocket, which takes its state away from the thread that uses it
                socket.socket.shutdown(found, socket.SHUT_RDWR)
            except OSError:
                return

    def close(self) -> None:
        """Lets go of the socket. In a fork's child this does not disturb the parent's."""
        found, self._socket = self._socket, None
        if found is not None:
            found.close()

    def _tunnel(self, limits: Limits) -> None:
        assert self._lines is not None
        place = f"{self.origin[1]}:{self.origin[2]}"
        headers = {"Host": place, **self.proxy_headers}
        lines = [f"CONNECT {place} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        self._lines.send(memoryview(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")), limits)
        answer = self.answer("CONNECT", limits)
        if answer.status != 200:
            raise _refused(answer)


class _Plain:
    """Waits in the kernel, which has time-outs of its own and sends or fills a whole buffer before it returns."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(None)
        self._socket = connected
        self._patience_s = 0.0

    def send(self, piece: memoryview, limits: Limits) -> None:
        while len(piece):
            self._prepare(limits)
            with _timed():
                piece = piece[self._socket.send(piece) :]

    def receive(self, buffer: Any, limits: Limits) -> int:
        self._prepare(limits)
        # The response asks for no more than is to come, so that waiting for all of it is right.
        flags = socket.MSG_WAITALL if len(buffer) >= _SMALL_BYTES else 0
        with _timed():
            return self._socket.recv_into(buffer, 0, flags)

    def _prepare(self, limits: Limits) -> None:
        patience_s = min(SILENCE_TIMEOUT_S, limits.seconds_left())
        if patience_s != self._patience_s:
            value = struct.pack("ll", int(patience_s), int(patience_s % 1 * 1e6) + 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self._patience_s = patience_s


@contextmanager
def _timed() -> Iterator[None]:
    try:
        yield
    except BlockingIOError as error:  # the kernel's way of saying that its time-out passed
        raise TimeoutError from error


class _Tls:
    """Waits in Python's ssl, whose time-out for a write is for all of its bytes: no more than a slow line carries."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._patience_s = 0.0
        self._size_bytes = _FIRST_BYTES

    def send(self, piece: memoryview, limits: Limits) -> None:
        while len(piece):
            self._prepare(limits)
            began = limits.deadline.now()
            self._socket.sendall(piece[: self._size_bytes])
            piece = piece[self._size_bytes :]
            # next time as much as went in half a second at this speed, if that is more than the least
            seconds = limits.deadline.now() - began
            self._size_bytes = max(_FIRST_BYTES, min(64 * _FIRST_BYTES, int(self._size_bytes * 0.5 / (seconds + 1e-3))))

    def receive(self, buffer: Any, limits: Limits) -> int:
        self._prepare(limits)
        return self._socket.recv_into(buffer)

    def _prepare(self, limits: Limits) -> None:
        patience_s = min(SILENCE_TIMEOUT_S, limits.seconds_left())
        if patience_s != self._patience_s:
            self._socket.settimeout(patience_s)
            self._patience_s = patience_s


class _Readable(io.RawIOBase):
    """What `HTTPResponse` takes for a socket. A read that is larger than the file's buffer goes past it."""

    def __init__(self, receive: Callable[[Any], int]) -> None:
        self._receive = receive

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._receive(buffer)


def joined(buffers: Sequence[memoryview]) -> Iterator[memoryview]:
    """The same bytes, with small neighbours copied together: each by itself would cost a system call."""
    small: list[memoryview] = []
    waiting = 0
    for buffer in buffers:
        if len(buffer) < _SMALL_BYTES:
            small.append(buffer)
            waiting += len(buffer)
        if waiting and (len(buffer) >= _SMALL_BYTES or waiting >= _JOINED_BYTES):
            yield memoryview(b"".join(small))
            small, waiting = [], 0
        if len(buffer) >= _SMALL_BYTES:
            yield buffer
    if waiting:
        yield memoryview(b"".join(small))


def _portions(piece: memoryview, limits: Limits) -> Iterator[memoryview]:
    """As large as may be: each costs a system call and a turn through Python."""
    most = _PACED_BYTES if limits.pace else _COUNTED_BYTES if limits.sent else len(piece)
    for start in range(0, len(piece), most):
        yield piece[start : start + most]


def _refused(answer: HTTPResponse) -> ConnectionError:
    return ConnectionError(f"the proxy answered {answer.status} {answer.reason}")


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _connected(host: str, port: int, limits: Limits) -> socket.socket:
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = in_time(f"to find the address of {host}", look_up, limits.deadline)
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(min(CONNECT_TIMEOUT_S, limits.seconds_left()))
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # where there is none, the first second is discarded anyway
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _WAITING_BYTES)
        except OSError as error:
            made.close()
            failure = error
        else:
            return made
    raise failure
