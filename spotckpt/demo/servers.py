"""The surroundings of a spot instance, on loopback: instance metadata, and a network to the bucket that can be slow.

Both are real servers that speak real HTTP over TCP; the bucket itself is moto's server (`spotckpt.demo.machines`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_TOKEN_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"
_PIECE = 32 * 1024
_SOCKET_BUFFER = 128 * 1024
_DRAIN_S = 5.0


class MetadataServer:
    """EC2 instance metadata of one instance, version 2 (session tokens), on a free port of 127.0.0.1.

    Answers 404 for `spot/instance-action` until `interrupt` is called, as EC2 does.
    """

    def __init__(self, *, instance_id: str) -> None:
        self.instance_id = instance_id
        self._documents = {"instance-id": instance_id, "instance-type": "demo.large"}
        self._tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Closes the port; harmless when called twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def interrupt(self, action: str, *, in_seconds: float) -> str:
        """Puts up the notice that the machine goes that many seconds from now; returns its document."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + in_seconds))
        document = json.dumps({"action": action, "time": when})
        self._documents["spot/instance-action"] = document
        return document

    def grant(self) -> str:
        """A new session token."""
        token = secrets.token_urlsafe(32)
        self._tokens.add(token)
        return token

    def answer(self, path: str, token: str | None) -> tuple[int, str]:
        """Status and body of a GET."""
        if token not in self._tokens:
            return 401, "Unauthorized"
        document = self._documents.get(path.removeprefix("/latest/meta-data/"))
        return (404, "Not Found") if document is None else (200, document)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        metadata = self

        class Handler(BaseHTTPRequestHandler):
            """One request; `send_response` adds the Date header that clients reckon the deadline by."""

            def do_PUT(self) -> None:
                """Mints a session token."""
                ttl = self.headers.get(_TOKEN_TTL_HEADER, "")
                if self.path != "/latest/api/token" or not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
                    self._reply(400, "Bad Request")
                else:
                    self._reply(200, metadata.grant(), **{_TOKEN_TTL_HEADER: ttl})

            def do_GET(self) -> None:
                """Answers a document."""
                self._reply(*metadata.answer(self.path, self.headers.get(_TOKEN_HEADER)))

            def log_message(self, format: str, *args: object) -> None:
                """The demo narrates; the access log would drown it."""

            def _reply(self, status: int, body: str, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

        return Handler


class SlowNetwork:
    """A TCP proxy on a free port of 127.0.0.1 whose way towards the server can be throttled.

    `bytes_per_s` may be changed at any time; None is unlimited. Small socket buffers keep the kernel from swallowing
    what should wait.
    """

    def __init__(self, *, upstream_port: int) -> None:
        self.bytes_per_s: float | None = None
        self.sent_bytes = 0
        self.port = 0
        self._upstream_port = upstream_port
        self._free_at = 0.0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Listens from now on."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Cuts every connection and closes the port; harmless when called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)  # accepted sockets inherit it
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, sock=listener, limit=_PIECE))
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port, limit=_PIECE)
            up = asyncio.ensure_future(self._pump(reader, up_writer, throttled=True))
            down = asyncio.ensure_future(self._pump(up_reader, writer, throttled=False))
            try:
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                if not down.done():
                    # The client may have closed its half only; a request cut short is answered at most this late.
                    await asyncio.wait((down,), timeout=_DRAIN_S)
            finally:
                up.cancel()
                down.cancel()
                up_writer.close()
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, throttled: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if throttled:
                    await self._wait_for_room(len(piece))
                    self.sent_bytes += len(piece)
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    async def _wait_for_room(self, size_bytes: int) -> None:
        if self.bytes_per_s is None:
            self._free_at = 0.0
            return
        start = max(self._loop.time(), self._free_at)
        self._free_at = start + size_bytes / self.bytes_per_s
        await asyncio.sleep(start - self._loop.time())
