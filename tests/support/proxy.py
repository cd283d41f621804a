"""A TCP proxy that understands HTTP well enough to fail where a test wants it to.

It runs in a thread and serves one request per connection. Rules are looked at in order; the first that matches and
has a turn left decides what happens to the request.

    with Proxy(moto.url) as proxy:
        proxy.on("PUT", r"/snapshots/", drop_reply())
        store = open_store(env.uri, environment=env.behind(proxy.url).environment)
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.support.loop_server import LoopServer
from tests.support.servers import wait_until

_PIECE = 64 * 1024
_LINE_BUFFER = 64 * 1024
"""Of a slow line: the kernel's buffers, and asyncio's, else grow to megabytes a connection, which seem to arrive."""


@dataclass(frozen=True)
class Action:
    """What to do with a request. Build one with the functions below."""

    kind: str
    status: int = 0
    body: bytes = b""
    count: int = 0
    name: str = ""
    also: Callable[[], None] = field(default=lambda: None, repr=False)


def reset() -> Action:
    """Resets the connection before anything is forwarded."""
    return Action("reset")


def stall() -> Action:
    """Reads nothing more and says nothing, not even `100 Continue`; the server never sees the request."""
    return Action("stall")


def stall_request(after_bytes: int) -> Action:
    """Takes that many bytes of the request's body and no more, and says nothing."""
    return Action("stall_request", count=after_bytes)


def stall_reply(after_bytes: int = 0) -> Action:
    """Forwards the request and passes that many bytes of the reply, head included, but never the rest."""
    return Action("stall_reply", count=after_bytes)


def dribble() -> Action:
    """Forwards the request and passes the reply a byte at a time, ten in a second."""
    return Action("dribble")


def drop_reply() -> Action:
    """Forwards the request, waits for the server's whole reply, and resets the connection instead of passing it."""
    return Action("drop_reply")


def cut_reply(after_bytes: int) -> Action:
    """Passes that many bytes of the reply, head included, and resets the connection."""
    return Action("cut_reply", count=after_bytes)


def cut_request(after_bytes: int) -> Action:
    """Passes that many bytes of the request's body and resets both connections."""
    return Action("cut_request", count=after_bytes)


def answer(status: int, body: bytes = b"") -> Action:
    """Answers for the server, which never sees the request."""
    return Action("answer", status=status, body=body)


def answer_instead(status: int, body: bytes = b"") -> Action:
    """Forwards the request, which the server carries out, and gives another answer than the server's."""
    return Action("answer_instead", status=status, body=body)


def flip_byte() -> Action:
    """Forwards the request with the last bit of its body's first byte changed."""
    return Action("flip")


def strip_header(name: str) -> Action:
    """Forwards the request without that header."""
    return Action("strip", name=name.lower())


def then(action: Action, also: Callable[[], None]) -> Action:
    """The action, and a call just before it (in the proxy's thread), such as to kill a process."""
    return Action(action.kind, action.status, action.body, action.count, action.name, also)


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body_bytes: int = 0
    """How many bytes of the body have been passed on so far."""


@dataclass
class _Rule:
    method: str
    path: re.Pattern[str]
    action: Action
    turns: float
    when: Callable[[Seen], bool]

    def matches(self, seen: Seen) -> bool:
        fits = self.method in ("*", seen.method) and self.path.search(seen.path) is not None
        return self.turns > 0 and fits and self.when(seen)


class Proxy(LoopServer):
    """A proxy in front of `target`, an `http://host:port`.

    Args:
        target: where requests go.
        bytes_per_s: how fast bodies are passed up, over all connections together; None is unlimited.
        tls: serves https with it; the target is asked in plain http.
    """

    def __init__(self, target: str, *, bytes_per_s: float | None = None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls, None if bytes_per_s is None else _LINE_BUFFER)
        self.bytes_per_s = bytes_per_s
        self.seen: list[Seen] = []
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._ready_at = 0.0

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, or https."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def on(
        self,
        method: str,
        path: str,
        action: Action,
        *,
        times: float = 1,
        when: Callable[[Seen], bool] = lambda seen: True,
    ) -> None:
        """From now on, `times` requests of that method (or `*`) whose path and query match get that action.

        Args:
            when: a further condition, asked last, in the proxy's thread.
        """
        with self._lock:
            self._rules.append(_Rule(method, re.compile(path), action, times, when))

    def clear(self) -> None:
        """Forgets the rules."""
        with self._lock:
            self._rules.clear()

    def wait_for(self, method: str, path: str, *, count: int = 1, timeout_s: float = 60.0) -> list[Seen]:
        """Returns once that many such requests have come."""

        def found() -> list[Seen] | None:
            hits = [seen for seen in list(self.seen) if seen.method == method and re.search(path, seen.path)]
            return hits if len(hits) >= count else None

        hits: list[Seen] = wait_until(found, timeout_s=timeout_s, what=f"{count} {method} {path}")
        return hits

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._exchange(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            _reset(writer)
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen = _parse(head)
        self.seen.append(seen)
        action = self._decide(seen)
        if action.kind in ("stall", "reset", "answer"):
            await self._refuse(action, seen, reader, writer)
            return
        up_reader, up_writer = await self._connect(*self._target)
        try:
            if "expect" in seen.headers:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            up_writer.write(_rewritten(head, drop={"expect", "connection", action.name}))
            if await self._pass_body(seen, action, reader, up_writer):
                await self._pass_reply(action, up_reader, writer)
            else:
                _reset(up_writer)
                _reset(writer)
        finally:
            up_writer.close()

    def _decide(self, seen: Seen) -> Action:
        with self._lock:
            for rule in self._rules:
                if rule.matches(seen):
                    rule.turns -= 1
                    break
            else:
                return Action("pass")
        if rule.action.kind in ("stall", "reset", "answer"):
            rule.action.also()
        return rule.action

    async def _refuse(
        self, action: Action, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if action.kind == "stall":
            await asyncio.Event().wait()
        if action.kind == "reset":
            _reset(writer)
            return
        if "expect" not in seen.headers:
            await reader.readexactly(int(seen.headers.get("content-length", 0)))
        await _answer(writer, action, with_body=seen.method != "HEAD")

    async def _pass_body(
        self, seen: Seen, action: Action, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter
    ) -> bool:
        left = int(seen.headers.get("content-length", 0))
        while left:
            piece = await reader.read(min(left, _PIECE))
            if not piece:
                return False
            if action.kind == "cut_request" and seen.body_bytes + len(piece) > action.count:
                action.also()
                return False
            if action.kind == "flip" and not seen.body_bytes:
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            if action.kind == "stall_request" and seen.body_bytes + len(piece) > action.count:
                await asyncio.Event().wait()
            await self._pace(len(piece))
            up_writer.write(piece)
            await up_writer.drain()
            left -= len(piece)
            seen.body_bytes += len(piece)
        return True

    async def _pass_reply(self, action: Action, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if action.kind in ("drop_reply", "answer_instead"):
            await up_reader.read()
            action.also()
            if action.kind == "drop_reply":
                _reset(writer)
            else:
                await _answer(writer, action, with_body=True)
            return
        passed = 0
        while piece := await up_reader.read(1 if action.kind == "dribble" else _PIECE):
            if action.kind == "dribble":
                await asyncio.sleep(0.1)
            if action.kind in ("cut_reply", "stall_reply") and passed + len(piece) > action.count:
                action.also()
                writer.write(piece[: action.count - passed])
                await writer.drain()
                if action.kind == "stall_reply":
                    await asyncio.Event().wait()
                _reset(writer)
                return
            writer.write(piece)
            await writer.drain()
            passed += len(piece)

    async def _pace(self, count: int) -> None:
        if self.bytes_per_s is None:
            return
        now = time.monotonic()
        self._ready_at = max(self._ready_at, now) + count / self.bytes_per_s
        await asyncio.sleep(self._ready_at - now)


async def _answer(writer: asyncio.StreamWriter, action: Action, *, with_body: bool) -> None:
    head = f"HTTP/1.1 {action.status} Scripted\r\nContent-Length: {len(action.body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + (action.body if with_body else b""))
    await writer.drain()


def _parse(head: bytes) -> Seen:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = (line.split(":", 1) for line in lines)
    return Seen(method, path, {name.strip().lower(): value.strip() for name, value in pairs})


def _rewritten(head: bytes, *, drop: set[str]) -> bytes:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    kept = [line for line in lines if line.split(":", 1)[0].strip().lower() not in drop]
    return ("\r\n".join([first, *kept, "Connection: close"]) + "\r\n\r\n").encode("latin-1")


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: Any = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
