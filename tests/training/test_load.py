"""Reading from a snapshot downloads and checks only what is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

import spotckpt
from spotckpt.errors import AddressError, NothingRestorable, SnapshotError, UsageError
from tests.training.machine import Bucket, Machine


def test_damage_elsewhere_does_not_matter_and_damage_here_does(here: Machine, tmp_path: Path) -> None:
    bucket = Bucket(f"file://{tmp_path}/run")
    here.train(bucket.uri, "--every=1h", "--epochs=1")
    (pack,) = (tmp_path / "run" / "packs").glob("*/rank-00000.safetensors")
    part = bucket.record(str(pack.with_suffix(".json").relative_to(tmp_path / "run")))
    (moment,) = [entry for entry in part["tensors"] if entry[0].endswith("state/0/momentum_buffer")]
    data = bytearray(pack.read_bytes())
    data[moment[4][0][1]] ^= 1
    pack.write_bytes(data)
    assert "0.weight" in spotckpt.load(bucket.uri, only="model")["model"]
    with pytest.raises(SnapshotError, match="momentum_buffer"):
        spotckpt.load(bucket.uri)


def test_an_empty_place_is_said_to_be_one(tmp_path: Path) -> None:
    for uri in (f"file://{tmp_path}/nothing", tmp_path / "nothing"):
        with pytest.raises(NothingRestorable, match="holds no snapshot"):
            spotckpt.load(uri)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UsageError, match="load was given 3, which is no address"):
        spotckpt.load(3)  # type: ignore[arg-type]
    with pytest.raises(AddressError, match="has no path"):
        spotckpt.load(None)  # type: ignore[arg-type]
