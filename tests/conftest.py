"""Fixtures for every test: S3 servers on loopback, fresh buckets, and an environment without the developer's AWS."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import LocalStack, MotoServer, S3Env, Seaweed, running


@pytest.fixture(scope="session", autouse=True)
def no_aws_of_the_developer() -> Iterator[None]:
    """No test finds credentials, profiles or endpoints by accident."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "SPOTCKPT_"))]:
            if name != "SPOTCKPT_LOCALSTACK_VENV":  # where LocalStack is, or will be, installed
                patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent/aws-config")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/aws-credentials")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> None:
    """`nohup` and a shell's `&` let all children ignore these, and tests send them."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    """One moto server for this process's tests. Its objects live in memory: keep them small."""
    with running(MotoServer()) as server:
        yield server  # type: ignore[misc]


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """One SeaweedFS for this process's tests; those that kill it take `seaweed`, which starts it again."""
    with running(Seaweed(tmp_path_factory.mktemp("seaweed"))) as server:
        yield server  # type: ignore[misc]


@pytest.fixture(scope="session")
def localstack_server() -> Iterator[LocalStack]:
    """One LocalStack for this process's tests, which are marked `localstack`."""
    with running(LocalStack()) as server:
        yield server  # type: ignore[misc]


@pytest.fixture
def seaweed(seaweed_server: Seaweed) -> Seaweed:
    """A SeaweedFS server, running. A test may `kill` and `start` it: what it acknowledged stays."""
    if not seaweed_server.is_running:
        seaweed_server.start()
    return seaweed_server


def _entered(env: S3Env, monkeypatch: pytest.MonkeyPatch) -> S3Env:
    for name, value in env.environment.items():
        monkeypatch.setenv(name, value)
    return env


@pytest.fixture
def s3_env(moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> S3Env:
    """A fresh bucket on moto; this process and its children find it in their environment."""
    return _entered(moto_server.new_env(), monkeypatch)


@pytest.fixture
def seaweed_env(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> S3Env:
    """A fresh bucket on SeaweedFS; this process and its children find it in their environment."""
    return _entered(seaweed.new_env(), monkeypatch)


@pytest.fixture
def localstack_env(localstack_server: LocalStack, monkeypatch: pytest.MonkeyPatch) -> S3Env:
    """A fresh bucket on LocalStack; this process and its children find it in their environment."""
    return _entered(localstack_server.new_env(), monkeypatch)


@pytest.fixture
def local_root(tmp_path: Path) -> str:
    """The address of a run in a directory that is not there yet."""
    return f"file://{tmp_path}/runs/run"
