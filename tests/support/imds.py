"""An EC2 metadata service on loopback: real HTTP, IMDSv2, every answer settable while it runs."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN_PATH = "/latest/api/token"
SPOT_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
SCHEDULED_PATH = "/latest/meta-data/events/maintenance/scheduled"
LIFECYCLE_PATH = "/latest/meta-data/autoscaling/target-lifecycle-state"
ROLE_PATH = "/latest/meta-data/iam/security-credentials/"
INSTANCE_PATH = "/latest/meta-data/instance-id"


def iso(wall: float) -> str:
    return datetime.fromtimestamp(wall, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def lent_keys(key: str, *, for_s: float = 21600.0) -> str:
    """A role's credentials, as the metadata services of instances and containers give them."""
    keys = {"AccessKeyId": key, "SecretAccessKey": "s", "Token": f"token-{key}"}
    return json.dumps({"Code": "Success", "Type": "AWS-HMAC", **keys, "Expiration": iso(time.time() + for_s)})


class Imds:
    """The service. Change its attributes at any time.

    Attributes:
        answers: path → (status, body); a path that is not there answers 404.
        token_status: answer to PUT of a token, 200 gives one.
        silent: paths that are never answered (until the server closes).
        date_offset_s: how far the service's clock is from ours; None sends no Date.
        hop_limit: time to live of the packets that bring a token; 0 is the system's own.
        requests: (method, path, status) of all that came.
        tokens: those that are valid.
        num_connections: that were made.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {INSTANCE_PATH: (200, "i-0123456789abcdef0")}
        self.token_status = 200
        self.silent: set[str] = set()
        self.date_offset_s: float | None = 0.0
        self.hop_limit = 0
        self.requests: list[tuple[str, str, int]] = []
        self.tokens: set[str] = set()
        self.num_connections = 0
        self.closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"imds": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def wall(self) -> float:
        """The service's own idea of the time."""
        return time.time() + (self.date_offset_s or 0.0)

    def spot(self, action: str, *, in_s: float | None) -> None:
        fields: dict[str, Any] = {"action": action}
        if in_s is not None:
            fields["time"] = iso(self.wall() + in_s)
        self.answers[SPOT_PATH] = (200, json.dumps(fields))

    def rebalance(self, *, at: float = 0.0) -> None:
        self.answers[REBALANCE_PATH] = (200, json.dumps({"noticeTime": iso(self.wall() + at)}))

    def lend(self, key: str, *, for_s: float = 21600.0) -> None:
        """Gives the instance's role these credentials from now on."""
        self.answers[ROLE_PATH] = (200, "trainer")
        self.answers[f"{ROLE_PATH}trainer"] = (200, lent_keys(key, for_s=for_s))

    def clear(self) -> None:
        for path in (SPOT_PATH, REBALANCE_PATH, SCHEDULED_PATH, LIFECYCLE_PATH):
            self.answers.pop(path, None)

    def expire_tokens(self) -> None:
        self.tokens.clear()

    def count(self, method: str, path: str) -> int:
        return sum(1 for seen in list(self.requests) if seen[:2] == (method, path))

    def hang_up(self) -> None:
        """Ends every connection, as a service does with those that were idle for long."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.closing.set()
        self.hang_up()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextmanager
def running_imds() -> Iterator[Imds]:
    imds = Imds()
    try:
        yield imds
    finally:
        imds.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    imds: Imds

    def setup(self) -> None:
        super().setup()
        self.imds.num_connections += 1
        self.imds._open.add(self.connection)

    def finish(self) -> None:
        self.imds._open.discard(self.connection)
        super().finish()

    def do_PUT(self) -> None:
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.path != TOKEN_PATH:
            self._answer(405, "")
        elif not ttl.isdigit() or not 1 <= int(ttl) <= 21600 or "X-Forwarded-For" in self.headers:
            self._answer(400, "")
        elif self.imds.token_status != 200:
            self._answer(self.imds.token_status, "")
        else:
            token = secrets.token_urlsafe(24)
            self.imds.tokens.add(token)
            if self.imds.hop_limit:
                self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, self.imds.hop_limit)
            self._answer(200, token)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") not in self.imds.tokens:
            self._answer(401, "")
            return
        self._answer(*self.imds.answers.get(self.path, (404, "")))

    def _answer(self, status: int, body: str) -> None:
        if self.path in self.imds.silent:
            self.imds.closing.wait()
            self.close_connection = True
            return
        self.imds.requests.append((self.command, self.path, status))
        self.send_response_only(status)
        if self.imds.date_offset_s is not None:
            self.send_header("Date", formatdate(self.imds.wall(), usegmt=True))
        if 300 <= status < 400:
            self.send_header("Location", body)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what the tests are about."""
