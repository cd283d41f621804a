"""EC2 instance metadata on loopback: a real server that speaks real HTTP over TCP."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_TOKEN_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"


class MetadataServer:
    """EC2 instance metadata of one instance, version 2 (session tokens), on a free port of 127.0.0.1.

    Answers 404 for `spot/instance-action` until `interrupt` is called, as EC2 does.
    """

    def __init__(self, *, instance_id: str) -> None:
        self.instance_id = instance_id
        self._documents = {"instance-id": instance_id, "instance-type": "drill.large"}
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
                """The drill narrates; the access log would drown it."""

            def _reply(self, status: int, body: str, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                with contextlib.suppress(ConnectionError):  # an agent that was killed meanwhile
                    self.end_headers()
                    self.wfile.write(body.encode())

        return Handler
