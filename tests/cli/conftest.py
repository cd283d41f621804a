"""A run to look at, in a directory and in a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from spotckpt.snapshot.keys import SnapshotId
from spotckpt.store.base import Store
from spotckpt.store.open import open_store
from tests.cli.runs import three_attempts
from tests.support.servers import S3Env


@dataclass
class MadeRun:
    """A run with three attempts. `root` is where its objects lie, where that is a directory."""

    uri: str
    store: Store
    ids: list[SnapshotId]
    root: Path = Path("/nonexistent")


@pytest.fixture
def local_run(local_root: str) -> Iterator[MadeRun]:
    """In a directory."""
    with closing(open_store(local_root)) as store:
        yield MadeRun(local_root, store, three_attempts(store), Path(local_root.removeprefix("file://")))


@pytest.fixture(params=["file", "s3"])
def run(request: pytest.FixtureRequest) -> Iterator[MadeRun]:
    """In a directory, and in a bucket."""
    if request.param == "file":
        yield request.getfixturevalue("local_run")
        return
    env: S3Env = request.getfixturevalue("s3_env")
    with closing(open_store(env.uri)) as store:
        yield MadeRun(env.uri, store, three_attempts(store))
