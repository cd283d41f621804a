"""A run that an earlier version wrote stays readable. A new format gets a golden run of its own; none is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spotckpt.address import Selector
from spotckpt.snapshot.catalog import read_catalog
from spotckpt.snapshot.choose import choose
from spotckpt.snapshot.fetch import read_manifest, read_part, read_tensors, verify
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.keys import history_key, pack_key
from spotckpt.snapshot.losses import Lost, Reached
from spotckpt.snapshot.metrics import Best
from spotckpt.snapshot.pack import ITEM_BYTES
from spotckpt.snapshot.tree import decode
from tests.snapshot.bucket import local_store
from tests.snapshot.golden.make import FIRST, SECOND, SHAPE, TABLE, metrics, raw, state
from tests.snapshot.test_tree import same

pytestmark = pytest.mark.fault(68)
store = local_store(Path(__file__).parent / "golden" / "format-1")


def test_the_records() -> None:
    found = read_catalog(store, before=3)
    assert found.run is not None and (found.run.run_id, found.run.tags) == ("0123456789abcdef", {"team": "a"})
    assert (found.claims[2].selector, found.claims[2].holder.trainer_pid) == ("step=10", 12)
    assert (found.bases[1].id, found.bases[2].id, found.bases[2].consumed) == (None, FIRST, ("step=10",))
    assert (found.heartbeats[1].released, found.heartbeats[2].last_id) == (True, SECOND)
    assert found.heartbeats[1].reached == Reached(12, 0.5)
    assert not found.problems and not found.strangers
    assert choose(found, 3, Selector.parse("step=10")).candidates == (SECOND, FIRST)


def test_the_manifest() -> None:
    manifest = read_manifest(store, SECOND, run_id="0123456789abcdef")
    assert (manifest.parent, manifest.step, manifest.epoch, manifest.reason) == (FIRST, 20, 1, "notice")
    assert (manifest.created, manifest.committed, manifest.finished) == (1_700_000_000.25, 1_700_000_001.0, False)
    assert manifest.best == {"train/loss:min": Best(0.25, 2, 0)} and manifest.evaluated == {"valid/top1": 0.5}
    assert manifest.lost == Lost(2, 0.5)
    assert manifest.arguments == {"lr": 0.001}
    assert [pack.key for pack in manifest.packs] == [pack_key(SECOND), pack_key(FIRST)]
    assert verify(store, SECOND).problems == ()


def test_every_dtype_and_every_tag() -> None:
    part = read_part(store, read_manifest(store, SECOND))
    buffers = read_tensors(store, part)
    table = {entry.name: index for index, entry in enumerate(part.tensors)}
    for dtype in ITEM_BYTES:
        entry = part.tensors[table[f"model/{dtype}"]]
        assert (entry.dtype, entry.shape, bytes(buffers[table[entry.name]])) == (dtype, SHAPE, raw(dtype))
    assert part.tensors[table["model/F32"]].stride == (1, 2)
    assert bytes(buffers[table["model/changes"]]) == SECOND.step.to_bytes(8, "little")
    assert {entry.name for entry in part.tensors if entry.chunks[0].pack == 0} == {"model/changes"}
    numpy_dtypes = {"U8": "|u1", "I32": "<i4", "I64": "<i8", "F64": "<f8"}

    def array(index: int) -> np.ndarray:
        entry = part.tensors[index]
        return np.frombuffer(buffers[index], numpy_dtypes[entry.dtype]).reshape(entry.shape)

    found = decode(part.tree["run"], array=array)
    expected = state()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert same(found[name], value), name
    assert found["ordered"]._metadata == expected["ordered"]._metadata


def test_the_metrics() -> None:
    manifest = read_manifest(store, SECOND)
    assert [one.key for one in manifest.history] == [history_key(FIRST), history_key(SECOND)]
    found, expected = read_history(store, manifest), metrics(SECOND.step)
    assert {name: list(names) for name, names in found.items()} == {
        name: list(names) for name, names in expected.items()
    }
    for set_name, name in (("train", "loss"), ("valid", "top1")):
        for column, wanted in zip(found[set_name][name].columns(), expected[set_name][name].columns(), strict=True):
            assert column.tobytes() == wanted.tobytes()
    table = found["valid"]["table"]
    assert table.steps == list(range(7)) and table[6] == "none"
    np.testing.assert_array_equal(table[5]["é"], TABLE)
