"""Directories for thousands of short lives."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NewRun = Callable[[], Path]


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[NewRun]:
    """Gives a fresh directory at each call; in memory where that can be had, since every life syncs dozens of files."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    parent = Path(tempfile.mkdtemp(prefix="spotckpt-crash-", dir=memory if usable else tmp_path))
    numbers = itertools.count()
    yield lambda: parent / f"run-{next(numbers)}"
    shutil.rmtree(parent)


@pytest.fixture(autouse=True)
def one_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a life's operations come in the same order whenever it is lived, and each is cut."""
    monkeypatch.setattr("spotckpt.snapshot.lazy.READS_AT_ONCE", 1)


@pytest.fixture(autouse=True)
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short histories then go on from segments as long ones do."""
    monkeypatch.setattr("spotckpt.snapshot.segments.SMALL_BYTES", 200)
