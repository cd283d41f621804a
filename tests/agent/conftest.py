"""One machine per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.harness import Machine, machine


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    """This machine: without an agent yet."""
    with machine(tmp_path / "here") as made:
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a run on local files lies."""
    return tmp_path / "bucket" / "run"


@pytest.fixture
def uri(root: Path) -> str:
    """Its address."""
    return f"file://{root}"
