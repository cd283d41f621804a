"""What a user can get wrong: one line that names it, an exit status of its own, nothing written or lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from blake3 import blake3

from tests.support.servers import S3Env
from tests.training.machine import Bucket, Machine, Trainer


@pytest.fixture(scope="module")
def interrupted(shared: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended by itself after three steps, with one snapshot."""
    path = tmp_path_factory.mktemp("interrupted") / "run"
    shared.train(f"file://{path}", "--every=3 steps", "--at=3", "--act=exit", status=3)
    return path


@pytest.fixture
def bucket(interrupted: Path, tmp_path: Path) -> Bucket:
    """A copy of it."""
    shutil.copytree(interrupted, tmp_path / "run")
    return Bucket(f"file://{tmp_path}/run")


def manifest_path(bucket: Bucket) -> Path:
    (found,) = Path(bucket.uri.removeprefix("file://"), "snapshots").glob("a*.json")
    return found


def error_of(trainer: Trainer) -> str:
    """The one line of error; there is no traceback."""
    assert "Traceback" not in trainer.said, trainer.said
    (line,) = [line for line in trainer.said.splitlines() if line.startswith("spotckpt: error: ")]
    return line


def test_unknown_scheme(shared: Machine) -> None:
    line = error_of(shared.train("nope://bucket/run", status=10))
    assert "nope:// is not known" in line


def test_missing_bucket(shared: Machine, s3_env: S3Env) -> None:
    line = error_of(shared.train("s3://there-is-no-such-bucket/run", status=23, env=s3_env.environment))
    assert "there-is-no-such-bucket" in line


def test_selector_that_matches_nothing(shared: Machine, bucket: Bucket) -> None:
    before = bucket.listing()
    line = error_of(shared.train(f"{bucket.uri}@step=7", status=33))
    assert "@step=7 matches nothing" in line and "3" in line.partition("matches nothing")[2]
    assert bucket.listing() == before


def test_selector_that_is_none(shared: Machine, bucket: Bucket) -> None:
    before = bucket.listing()
    assert "@stepp=7 is not known" in error_of(shared.train(f"{bucket.uri}@stepp=7", status=10))
    assert bucket.listing() == before


def test_value_that_cannot_be_encoded(shared: Machine, bucket: Bucket) -> None:
    line = error_of(shared.train(bucket.uri, "--at=5", "--act=vars", status=12))
    assert "vars.tokenizer" in line and "fn" in line and "function" in line
    assert shared.train(bucket.uri).steps[0] == 5, "what was sealed before is not lost"


def test_value_that_only_shows_at_a_snapshot(shared: Machine, bucket: Bucket) -> None:
    line = error_of(shared.train(bucket.uri, "--at=5", "--act=unencodable", status=12))
    assert "extra" in line and "function" in line
    assert shared.train(bucket.uri).steps[0] == 5


def test_model_of_other_shapes(shared: Machine, bucket: Bucket) -> None:
    before = {key: bucket.read(key) for key in bucket.listing()}
    line = error_of(shared.train(bucket.uri, "--width=9", status=13))
    assert "model" in line and "0.weight" in line and "strict=False" in line
    after = bucket.listing()
    assert {key: bucket.read(key) for key in before} == before
    assert not [key for key in after.keys() - before.keys() if not key.startswith("attempts/")]
    assert shared.train(bucket.uri).steps[0] == 3


@pytest.mark.fault(67)
def test_corrupt_manifest_is_no_fresh_start(shared: Machine, bucket: Bucket) -> None:
    path = manifest_path(bucket)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    before = bucket.listing()
    line = error_of(shared.train(bucket.uri, status=34))
    assert path.name in line
    assert bucket.listing() == before


@pytest.mark.fault(68)
def test_future_manifest_asks_for_an_upgrade(shared: Machine, bucket: Bucket) -> None:
    path = manifest_path(bucket)
    body = json.dumps({**json.loads(path.read_bytes())["body"], "format": 2}).encode()
    path.write_bytes(b'{"blake3":"%s","body":%s}' % (blake3(body).hexdigest().encode(), body))
    before = bucket.listing()
    line = error_of(shared.train(bucket.uri, status=32))
    assert "format 2" in line and "upgrade" in line
    assert bucket.listing() == before
