"""The metric history of a snapshot, read without anything else of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.save import commit, upload
from spotckpt.snapshot.tree import encode
from spotckpt.store.base import Span, Store
from tests.snapshot.bucket import Wrapped, local_store, sid, staged


class Counting(Wrapped):
    """Counts the bytes that are read."""

    read_bytes = 0

    def read(self, key: str, **options: Any) -> bytes:
        data = super().read(key, **options)
        self.read_bytes += len(data)
        return data

    def read_into(self, key: str, spans: list[Span], **options: Any) -> None:  # type: ignore[override]
        self.read_bytes += sum(len(view) for _, views in spans for view in views)
        super().read_into(key, spans, **options)


def saved(store: Store, history: History) -> Manifest:
    """A snapshot with a large tensor and that history."""
    arrays = {"weight": np.zeros(1_000_000, "<f4")}

    def add(array: np.ndarray, path: str) -> int:
        arrays[path] = array
        return len(arrays) - 1

    metrics = encode(history.state(), path="metrics", array=add)
    made, data = staged(sid(1, 0), arrays)
    made = replace(made, tree={"objects": {}, "run": {"metrics": metrics}})
    manifest, _ = upload(store, made, data, run_id=ensure_run(store).run_id, parent=None)
    commit(store, manifest)
    return manifest


def test_a_history_is_read_without_the_tensors(tmp_path: Path) -> None:
    history = History()
    for step, value in enumerate((1.5, math.nan, math.inf)):
        history.log("train", "loss", value, step=step, epoch=0)
    history.log("valid", "top1", 0.5, step=3)
    store = Counting(local_store(tmp_path))
    manifest = saved(store, history)
    found = read_history(store, manifest)
    assert {name: list(names) for name, names in found.items()} == {"train": ["loss"], "valid": ["top1"]}
    steps, epochs, values = found["train"]["loss"].columns()
    assert (steps.tolist(), epochs.tolist()) == ([0, 1, 2], [0, 0, 0])
    np.testing.assert_array_equal(values, [1.5, math.nan, math.inf])
    assert (steps.dtype, epochs.dtype, values.dtype) == (np.int64, np.int64, np.float64)
    assert found["valid"]["top1"].is_scalar and not values.flags.writeable
    assert store.read_bytes < 10_000


def test_a_run_without_metrics_has_an_empty_history(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    assert dict(read_history(store, saved(store, History()))) == {}
