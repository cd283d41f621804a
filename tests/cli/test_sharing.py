"""`verify` and `show` on snapshots that use each other's packs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.save import commit, upload
from tests.cli.command import in_process
from tests.snapshot.bucket import begin, local_store, sid, staged

FROZEN = np.arange(100_000, dtype="<f4")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three snapshots with frozen weights, and one of another model."""
    store = local_store(tmp_path / "run")
    begin(store, 1)
    previous = parent = None
    for sequence in range(4):
        one = sid(1, sequence)
        state = {"head": np.full(5, sequence, "<f4"), **({"frozen": FROZEN} if sequence < 3 else {})}
        made, data = staged(one, state, extra={"vars": {}})
        run_id = ensure_run(store).run_id
        manifest, previous = upload(store, made, data, run_id=run_id, parent=parent, previous=previous)
        commit(store, manifest)
        parent = one
    return tmp_path / "run"


def test_damage_in_a_pack_is_told_for_every_snapshot_that_uses_it(run: Path) -> None:
    assert in_process("verify", f"file://{run}").status == 0
    key = f"packs/{sid(1, 0)}/rank-00000.safetensors"
    data = bytearray((run / key).read_bytes())
    data[-1] ^= 1
    (run / key).write_bytes(data)
    done = in_process("verify", "--json", f"file://{run}")
    assert done.status == 31
    found = json.loads(done.out)["snapshots"]
    assert [one["whole"] for one in found] == [False, False, False, True]
    for one in found[:3]:
        (problem,) = one["problems"]
        assert key in problem and "frozen" in problem and "digest" in problem


def test_show_tells_how_little_was_uploaded(run: Path) -> None:
    done = in_process("show", f"file://{run}@{sid(1, 1)}")
    assert done.status == 0
    size = next(line for line in done.out.splitlines() if line.startswith("size"))
    assert "400.0 kB of tensors, " in size and "B uploaded" in size
    shown = json.loads(in_process("show", "--json", f"file://{run}@{sid(1, 1)}").out)
    assert shown["uploaded_bytes"] < 2000 < shown["data_bytes"] and len(shown["packs"]) == 2
