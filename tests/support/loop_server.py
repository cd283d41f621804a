"""A server of a test: a loop in a thread of its own, and at its end nothing is left of what it had accepted."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import weakref
from abc import ABC, abstractmethod
from typing import TypeVar

S = TypeVar("S", bound="LoopServer")

PATIENCE_S = 60.0


class LoopServer(ABC):
    """Serves on a port of 127.0.0.1 while it is entered.

    Args:
        tls: what it serves with; None is plain.
        ahead_bytes: about how much of a request it takes in before that is served; None is as much as may be.

    Attributes:
        port: where, from when it is entered.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, ahead_bytes: int | None = None) -> None:
        self.port = 0
        self._ahead_bytes = ahead_bytes
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__, daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to another server, which does not outlast this one."""
        reader, writer = await asyncio.open_connection(host, port)
        self._writers.add(writer)
        return reader, writer

    def __enter__(self: S) -> S:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(timeout=PATIENCE_S)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(timeout=PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=PATIENCE_S)
        self._loop.close()

    async def _listen(self) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        if self._ahead_bytes is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._ahead_bytes)
        limit = self._ahead_bytes or 2**20
        self._server = await asyncio.start_server(self._accept, sock=listening, limit=limit, ssl=self._tls)
        self.port = listening.getsockname()[1]

    async def _end(self) -> None:
        assert self._server is not None
        # closed only at the end: what was accepted and has no transport yet would find no server, and never be closed
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        await asyncio.sleep(0)  # a task that is cancelled before its first step would not close what it was given
        # asyncio's own tasks as well, which make a connection of what was just accepted
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        self._server.close()
        await asyncio.sleep(0.01)  # the loop closes the aborted sockets in its next turns

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)  # here: a task that is cancelled before its first step runs nothing at all
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
