"""Real servers on loopback for the tests: moto's S3, SeaweedFS, and one that answers by a script."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

REGION = "us-east-1"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now.

    None of those that the system takes for connections going out (from 32768 on): before its server listens there, or
    while that is being started again, anybody's connection could have taken it, or have met itself on it.
    """
    while True:
        port = 12000 + secrets.randbelow(20000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 60.0, what: str = "the condition") -> Any:
    """Polls until the condition is true and returns its value."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.02)
    return value


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=1) as reply:
            return bool(reply.status < 500)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except OSError:
        return False


@dataclass
class S3Env:
    """A fresh bucket on a server, and what a process must have in its environment to reach it."""

    url: str
    bucket: str
    environment: dict[str, str]
    client: Any

    @property
    def uri(self) -> str:
        """The address of a run in the bucket."""
        return f"s3://{self.bucket}/run"

    def keys(self, prefix: str = "") -> list[str]:
        """Every key in the bucket, asked with boto3."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def uploads(self) -> list[str]:
        """The keys of multipart uploads that are neither completed nor aborted."""
        listed = self.client.list_multipart_uploads(Bucket=self.bucket)
        return [item["Key"] for item in listed.get("Uploads", [])]

    def behind(self, url: str) -> S3Env:
        """The same bucket reached by way of another address, such as a proxy's."""
        return S3Env(url, self.bucket, {**self.environment, "AWS_ENDPOINT_URL_S3": url}, self.client)


class S3Server:
    """A process that serves S3 on a port of its own."""

    start_timeout_s = 120.0

    def __init__(self) -> None:
        self.port = free_port()
        self.access_key = "AK" + secrets.token_hex(9).upper()
        self.secret_key = secrets.token_hex(20)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        """A boto3 client of the server: independent of the code under test."""
        if self._client is None:
            self._client = boto3.client(
                "s3",
                endpoint_url=self.url,
                aws_access_key_id=self.access_key,
                aws_secret_access_key=self.secret_key,
                region_name=REGION,
                config=Config(retries={"mode": "standard", "total_max_attempts": 5}),
            )
        return self._client

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the process and waits until it answers."""
        self._process = self._spawn()
        wait_until(self._is_ready, timeout_s=self.start_timeout_s, what=f"{type(self).__name__} on port {self.port}")

    def kill(self) -> None:
        """SIGKILL to the process and its children."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ends the process and closes the client."""
        self.kill()
        if self._client is not None:
            self._client.close()
            self._client = None

    def new_env(self) -> S3Env:
        """Makes a bucket of its own."""
        bucket = f"test-{uuid.uuid4().hex[:20]}"
        self.client.create_bucket(Bucket=bucket)
        return S3Env(self.url, bucket, self.environment(), self.client)

    def environment(self) -> dict[str, str]:
        """What the AWS tools read from a process's environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_DEFAULT_REGION": REGION,
        }

    def _spawn(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        assert self.is_running, f"{type(self).__name__} ended at once"
        return _answers(self.url)


_EXCLUSIVE_MOTO = """
import sys, threading
from moto.s3.responses import S3Response
from moto.server import main

writing, put_object = threading.Lock(), S3Response.put_object


def one_at_a_time(self):
    with writing:
        return put_object(self)


S3Response.put_object = one_at_a_time
main(sys.argv[1:])
"""
"""moto looks whether there is an object, and writes it then: of two conditional writes at once both could win."""


class MotoServer(S3Server):
    """moto's S3: starts fast, takes any credentials, verifies no checksum, forgets everything at its end.

    Args:
        page_keys: how many keys it lists at once. S3 lists a thousand.
    """

    def __init__(self, page_keys: int = 1000) -> None:
        super().__init__()
        self.page_keys = page_keys

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-c", _EXCLUSIVE_MOTO, "-H", "127.0.0.1", "-p", str(self.port)]
        return spawn(command, MOTO_S3_DEFAULT_MAX_KEYS=str(self.page_keys))


class Seaweed(S3Server):
    """SeaweedFS: verifies credentials and checksums, and keeps what it acknowledged through a SIGKILL.

    Args:
        directory: where it keeps its data; a server started there again finds it.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self._ports = [free_port() for _ in self._port_flags]

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.directory.mkdir(parents=True, exist_ok=True)
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        config = self.directory / "s3.json"
        config.write_text(json.dumps({"identities": [{"name": "test", "credentials": keys, "actions": rights}]}))
        flags = {
            "dir": self.directory,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            "admin.ui": "false",
            "webdav": "false",
            "s3.config": config,
            "s3.port": self.port,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "volume.max": 1000,
            "s3.localSocket": self.directory / "s3.sock",
            "filer.localSocket": self.directory / "filer.sock",
            **dict(zip(self._port_flags, self._ports, strict=True)),
        }
        weed = Path(sys.executable).with_name("weed")
        return spawn([str(weed), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in flags.items())])

    _port_flags = (
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "admin.port",
        "admin.port.grpc",
        "s3.port.grpc",
    )

    def _is_ready(self) -> bool:
        assert self.is_running, "weed ended at once"
        return _answers(f"{self.url}/healthz")


class LocalStack(S3Server):
    """LocalStack, in the way that `localstack/run.sh` starts it for people: its first start installs it."""

    start_timeout_s = 240.0

    def stop(self) -> None:
        """Lets the script end the server and clear up after it."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
        super().stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).resolve().parents[2] / "localstack" / "run.sh"
        return spawn([str(script)], PORT=str(self.port))

    def _is_ready(self) -> bool:
        assert self.is_running, "localstack/run.sh ended: run it by hand to see why"
        if not _answers(f"{self.url}/_localstack/health"):
            return False
        # the script has made its bucket, too
        return "spotckpt" in [bucket["Name"] for bucket in self.client.list_buckets()["Buckets"]]


def spawn(command: list[str], **more: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**environment, **more},
    )


@dataclass
class Request:
    """What came to a `ScriptedServer`; `body()` reads the body when it is called."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Callable[[], bytes] = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Silence:
    """No answer until the server stops."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset."""


Script = Callable[[Request], Reply | Silence | Reset]


class ScriptedServer:
    """An HTTP server that answers what `script` says; it never sends `100 Continue` before `Request.body` is called.

    Args:
        script: called with each request, in a thread of its own.
    """

    def __init__(self, script: Script) -> None:
        self.requests: list[Request] = []
        self.script = script
        self.stopping = threading.Event()
        handler = type("Handler", (_ScriptedHandler,), {"scripted": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of the usual five the sixth waits a second, until it asks again


class _ScriptedHandler(BaseHTTPRequestHandler):
    scripted: ScriptedServer
    protocol_version = "HTTP/1.1"

    def handle_expect_100(self) -> bool:
        return True

    def _answer(self) -> None:
        request = Request(self.command, self.path, dict(self.headers.items()), self._body)
        self.scripted.requests.append(request)
        reply = self.scripted.script(request)
        if isinstance(reply, Reply):
            self._send(reply)
            return
        self.close_connection = True
        if isinstance(reply, Silence):
            self.scripted.stopping.wait()
        else:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        for name, value in {"Date": self.date_time_string(), **reply.headers}.items():
            self.send_header(name, value)
        if "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextlib.contextmanager
def running(server: S3Server) -> Iterator[S3Server]:
    """The server, started, and stopped at the end."""
    try:
        server.start()
        yield server
    finally:
        server.stop()
