"""HTTP of the discarding server: bodies that are dropped in the kernel, and files that are sent there."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

BUFFER_BYTES = 1 << 20
HEAD_LIMIT_BYTES = 64 << 10
PHRASES = {200: "OK", 204: "No Content", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed"}


class Broken(Exception):
    """The client went in the middle of something."""


@dataclass(frozen=True)
class Request:
    """The head of a request; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def is_aws_chunked(self) -> bool:
        """Whether the payload comes in chunks with signatures or trailers."""
        return "x-amz-decoded-content-length" in self.headers

    @property
    def payload_bytes(self) -> int:
        """How long the object or part will be."""
        name = "x-amz-decoded-content-length" if self.is_aws_chunked else "content-length"
        return int(self.headers.get(name, 0))


@dataclass(frozen=True)
class Piece:
    """A range of a file."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Answer:
    """What goes back; `length` is what a HEAD says when it is not the body's own."""

    status: int = 200
    body: bytes = b""
    pieces: Sequence[Piece] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None

    @property
    def body_bytes(self) -> int:
        """Of what is sent."""
        return len(self.body) + sum(piece.length for piece in self.pieces)


def parse(head: bytes) -> Request:
    """A request's head without its empty line."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    url = urlsplit(target)
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Request(method, unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True)), headers)


class Stream:
    """A connected socket, and what was read from it too early."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._early = b""
        # with MSG_TRUNC the kernel counts and frees what came without writing here: these pages never exist
        self._untouched = mmap.mmap(-1, BUFFER_BYTES)

    def request(self) -> Request | None:
        """The next one; None at the end of the connection. Who waits for `100 Continue` gets it."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        request = parse(head)
        if request.headers.get("expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return request

    def answer(self, request: Request, answer: Answer) -> None:
        """Sends an answer, its files without reading them."""
        length = answer.body_bytes if answer.length is None else answer.length
        headers = {"Content-Length": str(length), **answer.headers}
        first = f"HTTP/1.1 {answer.status} {PHRASES.get(answer.status, 'Error')}"
        head = "\r\n".join([first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()
        if request.method == "HEAD":
            self._socket.sendall(head)
            return
        self._socket.sendall(head + answer.body)
        for piece in answer.pieces:
            self._send_file(piece)

    def payload(self, request: Request) -> Iterator[int]:
        """Lengths of the runs of payload in a body: each is taken (`discard`, `read`) before the next is asked for.

        An aws-chunked body has a head before each run, and trailers after the last; they are dropped here.
        """
        if not request.is_aws_chunked:
            yield request.payload_bytes
            return
        while length := int(self._line().partition(b";")[0], 16):
            yield length
            self._line()
        while self._line():
            pass

    def discard(self, num_bytes: int) -> None:
        """Takes that many bytes and drops them."""
        left = num_bytes - len(self._take(num_bytes))
        while left:
            count = self._socket.recv_into(self._untouched, min(left, BUFFER_BYTES), socket.MSG_TRUNC)
            if not count:
                raise Broken
            left -= count

    def read(self, num_bytes: int) -> Iterator[bytes]:
        """The next bytes, as they come."""
        while num_bytes:
            found = self._take(num_bytes) or self._socket.recv(min(num_bytes, BUFFER_BYTES))
            if not found:
                raise Broken
            num_bytes -= len(found)
            yield found

    def _line(self) -> bytes:
        found = self._until(b"\r\n")
        if found is None:
            raise Broken
        return found

    def _until(self, mark: bytes) -> bytes | None:
        while mark not in self._early:
            if len(self._early) > HEAD_LIMIT_BYTES or not (more := self._socket.recv(HEAD_LIMIT_BYTES)):
                return None
            self._early += more
        found, _, self._early = self._early.partition(mark)
        return found

    def _take(self, num_bytes: int) -> bytes:
        found, self._early = self._early[:num_bytes], self._early[num_bytes:]
        return found

    def _send_file(self, piece: Piece) -> None:
        fd = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            offset, end = piece.offset, piece.offset + piece.length
            while offset < end:
                sent = os.sendfile(self._socket.fileno(), fd, offset, end - offset)
                if not sent:
                    raise Broken
                offset += sent
        finally:
            os.close(fd)
