"""What the cases share: sizes, servers, agents, trainers, and the form of what they find."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.measure import Meter, Sample, Series
from tests.bench.processes import Agent, Discarding
from tests.bench.worker import Worker
from tests.support.imds import Imds
from tests.support.servers import S3Env, S3Server, Seaweed

MIB = 1 << 20
BY_HAND = {"every": "1000000 steps", "overlap": False}
"""Options of a run whose snapshots are asked for, and are there when the boundary returns."""
TRAINER = "tests.bench.trainer:Trainer"
RAW = "tests.bench.raw:Raw"
CLIENTS = ("boto3", "awscrt", "obstore")


@dataclass(frozen=True)
class Row:
    """One contender of a case.

    Attributes:
        case: which.
        what: the contender.
        series: its samples.
        server: where the bytes went; empty if nowhere.
        size_bytes: what was moved, for MB/s; 0 if that says nothing.
    """

    case: str
    what: str
    series: Series
    server: str = ""
    size_bytes: int = 0


@dataclass
class Found:
    """What a case gives: rows for the table, figures for the targets, remarks."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


class Saving:
    """A trainer with a run on a server, and the agent that uploads for it."""

    def __init__(self, worker: Worker, agent: Agent, uri: str) -> None:
        self.worker, self.agent, self.uri = worker, agent, uri
        self.upload = Series()
        self.whole = Series()

    def copy(self) -> Sample:
        """The plain copy."""
        meter = Meter(self.worker.pid)
        return meter.read(self.worker.call("copy"))

    def snapshot(self) -> Sample:
        """One snapshot up to its commit: returned is what the trainer noticed; `upload` and `whole` get theirs."""
        self.worker.call("step")
        before = self.agent.committed(self.uri)
        trainer, agent = Meter(self.worker.pid), Meter(self.agent.pid)
        blocked_s, sealed = self.worker.call("snapshot")
        noticed = trainer.read(blocked_s)
        committed = self.agent.wait_committed(self.uri, after=before)
        upload = agent.read(committed - sealed)
        self.upload.append(upload)
        seconds, cpu_s = noticed.wall_s + upload.wall_s, noticed.cpu_s + upload.cpu_s
        self.whole.append(Sample(seconds, cpu_s, noticed.extra_bytes + upload.extra_bytes))
        return noticed

    def timed(self, method: str, *arguments: Any, **named: Any) -> Sample:
        """A method that returns wall seconds."""
        meter = Meter(self.worker.pid)
        return meter.read(self.worker.call(method, *arguments, **named))


class Bench:
    """One run of the benchmark.

    Args:
        quick: small and few.
    """

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self.repeats = 5
        self.size_bytes = (128 if quick else 1024) * MIB
        self.cores = len(os.sched_getaffinity(0))
        self._names = itertools.count(1)
        self._stack = contextlib.ExitStack()
        self.directory = self._new_directory(None)
        self.memory = self._new_directory("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.metadata = Imds()
        self._stack.callback(self.metadata.close)

    @property
    def copied_bytes(self) -> int:
        """The state where a copy is the measure: a snapshot's fixed milliseconds must not decide a short run."""
        return 2 * self.size_bytes if self.quick else self.size_bytes

    def close(self) -> None:
        """Ends every process and removes every file."""
        self._stack.close()

    @functools.cached_property
    def discarding(self) -> S3Env:
        """A bucket on the server that discards."""
        return self._started(self.discarding_server)

    @functools.cached_property
    def discarding_server(self) -> Discarding:
        """Its server."""
        return Discarding()

    @functools.cached_property
    def keeping(self) -> S3Env:
        """A bucket on a discarding server that keeps."""
        return self._started(self.keeping_server)

    @functools.cached_property
    def keeping_server(self) -> Discarding:
        """Its server."""
        keep = self.memory / "keep"
        keep.mkdir()
        return Discarding(keep)

    @functools.cached_property
    def seaweed(self) -> S3Env:
        """A bucket on SeaweedFS."""
        return self._started(Seaweed(self.directory / "seaweed"))

    def new_name(self, prefix: str) -> str:
        """A name that nothing has yet."""
        return f"{prefix}-{next(self._names)}"

    @contextlib.contextmanager
    def agent(self) -> Iterator[Agent]:
        """An agent of its own, with an empty spool."""
        name = self.new_name("agent")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SPOTCKPT_"))}
        agent = Agent(
            self.directory / name, self.memory / name, metadata=self.metadata.endpoint, environment=environment
        )
        try:
            yield agent
        finally:
            agent.close()

    @functools.cached_property
    def usual_agent(self) -> Agent:
        """The one that uploads."""
        return self._stack.enter_context(self.agent())

    @functools.cached_property
    def usual_trainer(self) -> Worker:
        """The one that trains; each case begins anew there."""
        return self._stack.enter_context(self.worker(TRAINER, environment={}))

    @contextlib.contextmanager
    def saving(self, server: S3Env, **training: Any) -> Iterator[Saving]:
        """A trainer with a training of `size_bytes`, or of these arguments, and the agent; no run is open yet."""
        worker, agent = self.usual_trainer, self.usual_agent
        training = {"size_bytes": self.size_bytes, **training}
        worker.call("begin", {**server.environment, **agent.environment}, **training)
        try:
            yield Saving(worker, agent, f"s3://{server.bucket}/{self.new_name('run')}")
        finally:
            worker.call("close")

    def worker(self, make: str, *arguments: Any, environment: Mapping[str, str], **named: Any) -> Worker:
        """A child process; see `Worker`."""
        clean = {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
        log = self.directory / self.new_name("log")
        return Worker(make, *arguments, environment={**clean, **environment}, log=log, **named)

    def _started(self, server: S3Server) -> S3Env:
        server.start()
        self._stack.callback(server.stop)
        return server.new_env()

    def _new_directory(self, parent: str | None) -> Path:
        path = Path(tempfile.mkdtemp(prefix="spotckpt-bench-", dir=parent))
        self._stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path
