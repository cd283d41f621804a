"""A machine and a bucket per test, and how a training ends that nobody disturbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.machine import Bucket, Machine, machine


@pytest.fixture
def here() -> Iterator[Machine]:
    with machine() as found:
        yield found


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    """One machine for a module whose tests leave its agent alone: starting an agent is most of a small test."""
    with machine() as found:
        yield found


@pytest.fixture
def on_shared(shared: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """This process trains there."""
    shared.enter(monkeypatch)
    return shared


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(f"file://{tmp_path}/run")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The last line of a training that was never interrupted."""
    with machine() as found:
        return found.train(f"file://{tmp_path_factory.mktemp('plain')}/run").end
