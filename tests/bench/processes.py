"""The other processes of a measurement: the discarding server and the agent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spotckpt.agent import paths
from spotckpt.agent.client import Client
from spotckpt.errors import AgentError
from tests.bench.measure import cpu_seconds
from tests.support.servers import S3Server

POLL_S = 0.005  # asking costs the agent 0.1 ms: a fiftieth of a core


class Discarding(S3Server):
    """`tests.bench.discard` in a process of its own.

    Args:
        keep: where it keeps large bodies; None discards them.
    """

    def __init__(self, keep: Path | None = None) -> None:
        super().__init__()
        self.keep = keep

    def start(self) -> None:
        """Returns when it serves."""
        command = [sys.executable, "-m", "tests.bench.discard"]
        command += ["--keep", str(self.keep)] if self.keep else []
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Ends it and closes its pipes."""
        process = self._process
        super().kill()
        if process is not None and process.stdin and process.stdout:
            process.stdin.close()
            process.stdout.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def stats(self) -> dict[str, float]:
        """What came and went since its start, and the CPU seconds that this took."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/-stats") as reply:
            return {**json.load(reply), "cpu_s": cpu_seconds(self.pid)}

    def cost_since(self, before: Mapping[str, float]) -> str:
        """CPU seconds for each GiB since those `stats`, in words."""
        used = {name: value - before[name] for name, value in self.stats().items()}
        moved = used["received_bytes"] + used["sent_bytes"]
        kind = "server that keeps" if self.keep else "discarding server"
        return f"{kind}: {used['cpu_s'] / moved * 2**30:.2f} CPU s/GiB of its own, not in the table"


class Agent:
    """`spotckpt agent`, as a service would run it.

    Args:
        directory: for its socket and its log.
        spool: for slots.
        metadata: the endpoint to ask for notices, every second.
    """

    def __init__(self, directory: Path, spool: Path, *, metadata: str, environment: Mapping[str, str]) -> None:
        directory.mkdir(parents=True)
        self.environment = {"SPOTCKPT_RUNTIME_DIR": str(directory), "SPOTCKPT_SPOOL": str(spool)}
        command = [sys.executable, "-m", "spotckpt", "agent", "--metadata-endpoint", metadata, "--poll-interval", "1"]
        started = time.perf_counter()
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=log, env={**environment, **self.environment}
            )
        self._client = self._connected(directory, started + 30)
        self.ready_s = time.perf_counter() - started

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def status(self, uri: str) -> dict[str, Any]:
        """What it says of an open run; empty for one that is not open."""
        runs = self._client.call("status", timeout=30)["runs"]
        return next((run for run in runs if run["uri"] == uri), {})

    def committed(self, uri: str) -> str | None:
        """The last committed snapshot of an open run."""
        found: str | None = self.status(uri).get("last_committed")
        return found

    def wait_committed(self, uri: str, *, after: str | None, timeout_s: float = 120.0) -> float:
        """Waits until a later snapshot than `after` is committed; the time by `perf_counter` when it was seen."""
        end = time.perf_counter() + timeout_s
        while self.committed(uri) == after:
            if time.perf_counter() > end:
                raise TimeoutError(f"no snapshot of {uri} is committed after {timeout_s:g} s: {self.status(uri)}")
            time.sleep(POLL_S)
        return time.perf_counter()

    def wait_idle(self, uri: str, timeout_s: float = 120.0) -> None:
        """Waits until nothing is being uploaded or about to be."""
        end = time.perf_counter() + timeout_s
        while (found := self.status(uri)) and (
            found["uploading"] or any(slot["state"] in ("staging", "leased") for slot in found["slots"])
        ):
            if time.perf_counter() > end:
                raise TimeoutError(f"{uri} is still being uploaded after {timeout_s:g} s")
            time.sleep(0.01)

    def close(self) -> None:
        """Ends it as systemd does."""
        self._client.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _connected(self, directory: Path, end: float) -> Client:
        while True:
            try:
                return Client.connect(paths.socket_path(directory))
            except AgentError:
                if self._process.poll() is not None or time.perf_counter() > end:
                    raise
                time.sleep(POLL_S)
