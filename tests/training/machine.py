"""One machine with its own agent, on which a test starts trainings; and the bucket as it lies there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from spotckpt.agent import locks
from spotckpt.agent.client import Client
from spotckpt.agent.paths import SOCKET_NAME
from tests.support.servers import wait_until
from tests.training.child import Child
from tests.training.forked import ROOT, SCRIPT

PATIENCE_S = 60.0


class Trainer:
    """One process of `scripts/train.py`."""

    def __init__(self, folder: Path, options: list[str], environment: Mapping[str, str], *, exec_python: bool) -> None:
        self._output, self._trace = folder / "output", folder / "trace"
        options = [*options, f"--trace={self._trace}"]
        self._process = Child(SCRIPT, options, environment, self._output, exec_python=exec_python)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, minus the signal's number if one killed it; None while it runs."""
        return self._process.status

    @property
    def said(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def trace(self) -> list[str]:
        return self._trace.read_text().splitlines() if self._trace.exists() else []

    @property
    def steps(self) -> list[int]:
        """`run.step` in each body that ran."""
        return [int(line.split()[1]) for line in self.trace if line.startswith("step ")]

    @property
    def end(self) -> str:
        """The line that the script writes last: step, sum of weights, losses."""
        lines = [line for line in self.trace if line.startswith("end ")]
        assert lines, f"did not come to its end:\n{self.said}"
        return lines[-1]

    def wait_for(self, line: str) -> None:
        def there() -> bool:
            status = self.status
            if line in self.trace:
                return True
            assert status is None, f"ended with {status} before {line!r}:\n{self.said}"
            return False

        wait_until(there, timeout_s=PATIENCE_S, what=f"trace {line!r}")

    def wait_to_say(self, text: str) -> None:
        def there() -> bool:
            status = self.status
            if text in self.said:
                return True
            assert status is None, f"ended with {status} before {text!r}:\n{self.said}"
            return False

        wait_until(there, timeout_s=PATIENCE_S, what=f"output {text!r}")

    def go(self) -> None:
        """Ends the act `spin`."""
        self._trace.with_suffix(".go").touch()

    def wait(self) -> int:
        """The exit status, once it has ended."""
        wait_until(lambda: self.status is not None, timeout_s=PATIENCE_S, what=f"the end of:\n{self.said}\n")
        assert self.status is not None
        return self.status

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Machine:
    """A runtime directory and a spool of its own, and every process that a test starts there."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.runtime, self.spool = folder / "r", folder / "s"
        for path in (self.runtime, self.spool):
            path.mkdir(mode=0o700)
        self.environment = {
            **environment,
            "SPOTCKPT_RUNTIME_DIR": str(self.runtime),
            "SPOTCKPT_SPOOL": str(self.spool),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.trainers: list[Trainer] = []
        self._agents: set[int] = set()
        self._stopped: set[int] = set()

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """This process trains here, too."""
        for name in ("SPOTCKPT_RUNTIME_DIR", "SPOTCKPT_SPOOL"):
            patch.setenv(name, self.environment[name])

    def start(
        self, uri: str | None, *options: str, env: Mapping[str, str] | None = None, exec_python: bool = False
    ) -> Trainer:
        """Starts a training."""
        folder = self.folder / f"trainer-{len(self.trainers)}"
        folder.mkdir()
        arguments = [*options, *([f"--uri={uri}"] if uri is not None else [])]
        trainer = Trainer(folder, arguments, {**self.environment, **(env or {})}, exec_python=exec_python)
        self.trainers.append(trainer)
        return trainer

    def train(
        self,
        uri: str | None,
        *options: str,
        status: int = 0,
        env: Mapping[str, str] | None = None,
        exec_python: bool = False,
    ) -> Trainer:
        """Starts a training and waits for its end, which must be of that status."""
        trainer = self.start(uri, *options, env=env, exec_python=exec_python)
        ended = trainer.wait()
        assert ended == status, f"ended with {ended}, not {status}:\n{trainer.said}"
        return trainer

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A connection to the machine's agent."""
        with Client.connect(self.runtime / SOCKET_NAME) as client:
            yield client

    def agent_pid(self) -> int:
        """Who holds the spool."""
        holder = wait_until(lambda: locks.read_holder(self.spool), what="an agent")
        self._agents.add(holder.pid)
        return int(holder.pid)

    def kill_agent(self) -> None:
        """SIGKILL, and wait until it is gone."""
        pid = self.agent_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _alive(pid), what="the agent's end")

    def stop(self, pid: int) -> None:
        """SIGSTOP: the process is there and does nothing."""
        self._stopped.add(pid)
        os.kill(pid, signal.SIGSTOP)

    def resume(self, pid: int) -> None:
        """SIGCONT."""
        self._stopped.discard(pid)
        os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends every process that was started here, the agent too."""
        for trainer in self.trainers:
            if trainer.status is None:
                trainer.signal(signal.SIGKILL)
            trainer.wait()
        holder = locks.read_holder(self.spool)
        for pid in {*self._agents, *([holder.pid] if holder else [])}:
            if _is_ours(pid, self.runtime):
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: not _alive(pid), what="the agent's end")


@contextlib.contextmanager
def machine(environment: Mapping[str, str] = os.environ) -> Iterator[Machine]:
    """A machine; everything of it is gone afterwards. Its paths are short: a socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="spot-", dir="/tmp"))
    found = Machine(folder, environment)
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Bucket:
    """A run's objects, read with fsspec."""

    uri: str

    def listing(self) -> dict[str, str]:
        """Key → something that changes whenever the object is written again."""
        fs, root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False, skip_instance_cache=True, **self._options)
        try:
            found = fs.find(root, detail=True)
        except FileNotFoundError:
            return {}
        return {
            path.removeprefix(f"{root}/"): _version(fs, info)
            for path, info in found.items()
            if "/.tmp-" not in path  # LocalStore's own, gone in a moment
        }

    def read(self, key: str) -> bytes:
        fs, root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False, skip_instance_cache=True, **self._options)
        return bytes(fs.cat_file(f"{root}/{key}"))

    def record(self, key: str) -> dict[str, Any]:
        """The body of one of our JSON objects."""
        return dict(json.loads(self.read(key))["body"])

    def manifests(self) -> list[dict[str, Any]]:
        """Every manifest, in the order of the ids."""
        return [self.record(key) for key in sorted(self.listing()) if key.startswith("snapshots/")]

    def attempts(self) -> list[int]:
        """The numbers of all claims."""
        names = [key.removeprefix("attempts/").removesuffix(".json") for key in self.listing()]
        return sorted(int(name) for name in names if name.isdigit())

    def released(self, attempt: int) -> bool:
        return bool(self.record(f"attempts/{attempt:04d}.heartbeat.json")["released"])

    def ended(self, attempt: int) -> str:
        """Why that attempt is over, as its last heartbeat tells."""
        return str(self.record(f"attempts/{attempt:04d}.heartbeat.json")["ended"])

    @property
    def _options(self) -> dict[str, Any]:
        if not self.uri.startswith("s3://"):
            return {}
        return {"endpoint_url": os.environ["AWS_ENDPOINT_URL_S3"]}


def _version(fs: Any, info: Mapping[str, Any]) -> str:
    if "ETag" in info:
        return f"{info['ETag']} {info['LastModified']}"
    return f"{info['ino']} {info['mtime']} {hashlib.sha256(fs.cat_file(info['name'])).hexdigest()}"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_ours(pid: int, runtime: Path) -> bool:
    """Whether the process is an agent of this very machine, not a later one with its pid."""
    try:
        return f"SPOTCKPT_RUNTIME_DIR={runtime}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
