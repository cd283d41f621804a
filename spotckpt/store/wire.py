"""HTTP/1.1 exchanges over connections that are kept.

Neither http.client's nor urllib3's connections know a deadline for a whole exchange: a server that sends a byte now and
then holds them for ever. Nothing here tries again.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from urllib.parse import SplitResult, urlsplit

from spotckpt.store.bounded import LateError
from spotckpt.store.connection import Connection, Limits, Origin

IDLE_LIMIT_S = 20.0
"""Older connections are not used again: what lies between may have forgotten them without a word."""
MOST_IDLE = 16
BODY_LIMIT_BYTES = 64 << 20


class WireError(Exception):
    """An exchange without an answer. `sent`: the request, or some of it, may have reached the server."""

    def __init__(self, cause: str, *, sent: bool) -> None:
        super().__init__(cause)
        self.sent = sent


class CertificateRefused(WireError):
    """The server's certificate is not trusted."""


@dataclass(frozen=True)
class Outgoing:
    """A request as it goes to the wire: the body's buffers are sent one after the other."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Sequence[memoryview] = ()


class Pool:
    """Connections to any number of servers. Threads may share it; a fork's child must not: they are the parent's.

    Args:
        trusted: a file of certificate authorities in place of the usual ones.
        proxy_of: the proxy's URL for a URL, or None.
    """

    def __init__(self, trusted: str | None, *, proxy_of: Callable[[str], str | None] = lambda url: None) -> None:
        self._trusted = trusted
        self._proxy_of = proxy_of
        self._idle: deque[Connection] = deque()
        self._context: ssl.SSLContext | None = None

    def exchange(self, request: Outgoing, limits: Limits, take: Callable[[HTTPResponse], None]) -> HTTPResponse:
        """Sends the request and lets `take` read the body of the answer.

        Raises:
            WireError: no whole answer came.
        """
        url = urlsplit(request.url)
        origin = (url.scheme, url.hostname or "", url.port or {"https": 443}.get(url.scheme, 80))
        connection = self._kept(origin, limits.deadline.now()) or Connection(origin)
        reusable = False
        try:
            with limits.halt.ends(connection.interrupt):
                response = self._on(connection, request, url, limits, take)
            reusable = not response.will_close and response.isclosed()
        except ssl.SSLCertVerificationError as error:
            raise CertificateRefused(_words(error, limits), sent=False) from error
        except (OSError, HTTPException) as error:
            raise WireError(_words(error, limits), sent=connection.has_sent) from error
        finally:
            self._give_back(connection, limits, reusable=reusable)
        return response

    def close(self) -> None:
        """Closes those connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def _on(
        self,
        connection: Connection,
        request: Outgoing,
        url: SplitResult,
        limits: Limits,
        take: Callable[[HTTPResponse], None],
    ) -> HTTPResponse:
        if not connection.is_open:
            tls = self._tls() if url.scheme == "https" else None
            connection.open(limits, proxy=self._proxy_of(request.url), tls=tls)
        try:
            connection.send(_head(request, url, connection), request.body, limits)
        except (BrokenPipeError, ConnectionResetError):
            # Who refuses a request early says so and closes: what it said may have arrived.
            response = connection.answer(request.method, limits)
        else:
            response = connection.answer(request.method, limits)
        connection.require_passed(response)
        take(response)
        return response

    def _kept(self, origin: Origin, now: float) -> Connection | None:
        for _ in range(len(self._idle)):
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                return None
            if now - connection.used_at >= IDLE_LIMIT_S or not connection.is_quiet:
                connection.close()
            elif connection.origin == origin:
                connection.has_sent = False
                return connection
            else:
                self._idle.appendleft(connection)  # to another server: every bucket has its own
        return None

    def _give_back(self, connection: Connection, limits: Limits, *, reusable: bool) -> None:
        if reusable and len(self._idle) < MOST_IDLE:
            connection.used_at = limits.deadline.now()
            self._idle.append(connection)
        else:
            connection.close()

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self._trusted)
        return self._context


def read_into(response: HTTPResponse, buffers: Sequence[memoryview]) -> int:
    """Fills the buffers from the body; how many bytes came before it ended."""
    total = 0
    for buffer in buffers:
        rest = buffer
        while len(rest) and (count := response.readinto(rest)):
            total += count
            rest = rest[count:]
        if len(rest):
            break
    return total


def read_small(response: HTTPResponse) -> bytes:
    """The whole body, which is said to be small.

    Raises:
        WireError: it is not, or it ended early.
    """
    body = response.read(BODY_LIMIT_BYTES)
    if response.read(1):
        raise WireError(f"the answer has more than {BODY_LIMIT_BYTES} bytes", sent=True)
    if response.length:
        raise WireError(f"the answer ended {response.length} bytes too early", sent=True)
    return body


def _head(request: Outgoing, url: SplitResult, connection: Connection) -> bytes:
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    host = url.netloc.rpartition("@")[2]
    if (url.scheme, url.port) in (("http", 80), ("https", 443)):
        host = host.rpartition(":")[0]
    headers = {"Host": host, "Accept-Encoding": "identity", **request.headers}
    target = path
    if connection.through_proxy:
        headers |= connection.proxy_headers
        target = f"{url.scheme}://{url.netloc}{path}"
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    assert not any("\n" in line or "\r" in line for line in lines)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _words(error: Exception, limits: Limits) -> str:
    if limits.halt.is_set:
        return "it was given up"
    if isinstance(error, TimeoutError) and not isinstance(error, LateError):
        return "no answer within the time that was left"
    return " ".join(str(error).split()) or type(error).__name__
