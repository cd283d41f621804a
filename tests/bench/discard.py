"""An S3 server that shows what a client costs: large bodies are discarded inside the kernel, or kept in a directory.

    python -m tests.bench.discard [--keep DIR]

prints its port and serves 127.0.0.1 until its standard input ends. One thread serves each connection. Signatures and
checksums are not looked at. `GET /-stats` tells how many requests and bytes of bodies came and went.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
from pathlib import Path

from tests.bench.objects import Objects, Refused
from tests.bench.wire import Answer, Broken, Request, Stream


class Server:
    """Accepts connections; each is a thread's.

    Args:
        keep: see `Objects`.
    """

    def __init__(self, keep: Path | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._objects = Objects(keep)
        self._stats = {"requests": 0, "received_bytes": 0, "sent_bytes": 0}
        self._lock = threading.Lock()
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """For ever."""
        while True:
            accepted, _ = self._listener.accept()
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._connection, args=(accepted,), daemon=True).start()

    def _connection(self, accepted: socket.socket) -> None:
        with accepted, contextlib.suppress(Broken, OSError):
            stream = Stream(accepted)
            while (request := stream.request()) is not None:
                answer = self._answer(request, stream)
                self._count(request, answer)
                stream.answer(request, answer)

    def _answer(self, request: Request, stream: Stream) -> Answer:
        if request.path == "/-stats":
            return Answer(body=json.dumps(self._stats).encode())
        try:
            return self._objects.answer(request, stream)
        except Refused as refused:
            return refused.answer

    def _count(self, request: Request, answer: Answer) -> None:
        if request.path == "/-stats":
            return
        with self._lock:
            self._stats["requests"] += 1
            self._stats["received_bytes"] += request.payload_bytes
            self._stats["sent_bytes"] += answer.body_bytes


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(prog="tests.bench.discard")
    parser.add_argument("--keep", type=Path, help="keep large bodies in this directory (on a tmpfs) and serve them")
    server = Server(parser.parse_args().keep)
    threading.Thread(target=server.serve, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
