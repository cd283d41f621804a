"""Runs as spotckpt writes them, made in a moment without torch."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from spotckpt.snapshot.attempts import ensure_run, write_base, write_heartbeat
from spotckpt.snapshot.keys import SnapshotId, claim_key
from spotckpt.snapshot.metrics import Best
from spotckpt.snapshot.pack import TensorSpec, layout
from spotckpt.snapshot.records import Base, Claim, Heartbeat, Holder, new_nonce
from spotckpt.snapshot.save import commit, upload
from spotckpt.snapshot.staged import Staged
from spotckpt.store.base import Store

TENSORS = {"model.fc.weight": (256, 64), "model.fc.bias": (256,), "optimizer.state[0].momentum_buffer": (256, 64)}
TREE = {
    "objects": {
        "model": {"kind": "module", "state": {"fc.weight": {"$tensor": 0}, "fc.bias": {"$tensor": 1}}},
        "optimizer": {"kind": "optimizer", "state": {"param_groups": [{"lr": 0.05, "momentum": 0.9}]}},
    },
    "run": {"vars": {"class_to_idx": {"cat": 0, "dog": 1}, "note": "[red]not markup[/red]"}},
}


def stage(snapshot: SnapshotId, *, reason: str = "periodic", **fields) -> tuple[Staged, memoryview]:
    specs = tuple(TensorSpec(name, "F32", shape) for name, shape in TENSORS.items())
    placed = layout(specs)
    data = bytearray(placed.data_bytes)
    for spec, offset in zip(specs, placed.offsets, strict=True):
        values = np.full(spec.shape, snapshot.step, np.float32).tobytes()
        data[offset : offset + len(values)] = values
    staged = Staged(
        id=str(snapshot),
        step=snapshot.step,
        epoch=snapshot.step // 100,
        reason=reason,
        created=time.time() - 90,
        tree=TREE,
        specs=specs,
        data_bytes=placed.data_bytes,
        **fields,
    )
    return staged, memoryview(data)


def begin(
    store: Store,
    attempt: int,
    *,
    selector: str = "newest",
    base: SnapshotId | None = None,
    consumed: tuple[str, ...] = (),
) -> None:
    ensure_run(store)
    holder = Holder(host=f"ip-10-0-0-{attempt}.eu-central-1.compute.internal", instance=f"i-{attempt}")
    claim = Claim(attempt, new_nonce(), time.time() - 7200 / attempt, holder, selector)
    store.put_if_absent(claim_key(attempt), claim.to_bytes())
    write_base(store, Base(attempt, None if base is None else str(base), selector, consumed))


def beat(store: Store, attempt: int, *, last: SnapshotId | None, released: bool, age_s: float = 5) -> None:
    beat = Heartbeat(attempt, 7, time.time() - age_s, released, None if last is None else str(last))
    write_heartbeat(store, beat)


def save(store: Store, snapshot: SnapshotId, *, parent: SnapshotId | None = None, **fields) -> SnapshotId:
    staged, data = stage(snapshot, **fields)
    commit(store, upload(store, staged, data, run_id=ensure_run(store).run_id, parent=parent)[0])
    return snapshot


def metrics(step: int) -> Mapping[str, Mapping]:
    latest = {"train/loss": 2.0 / (step + 1), "valid/top1": step / 1000}
    return {
        "latest": latest,
        "evaluated": {"valid/top1": step / 1000},
        "best": {"valid/top1:max": Best(step / 1000, step, 1), "train/loss:min": Best(float("-inf"), 3, 0)},
        "arguments": {"lr": 0.05, "name": "resnet"},
        "environment": {"torch": "2.13.0", "host": "ip-10-0-0-1", "devices": []},
        "timings": {"stage": 0.01},
    }


def three_attempts(store: Store) -> list[SnapshotId]:
    """Attempt 1 was released after a notice, attempt 2 died, attempt 3 lives. Ids in order.

    The beat of the last is of a clock that is ahead, so that it does not become stale while a slow test looks at it.
    """
    ids: list[SnapshotId] = []

    def one(attempt: int, sequence: int, step: int, **fields) -> None:
        ids.append(save(store, SnapshotId.new(attempt, sequence, step), parent=ids[-1] if ids else None, **fields))

    begin(store, 1)
    one(1, 0, 100, **metrics(100))
    one(1, 1, 157, reason="notice", **metrics(157))
    beat(store, 1, last=ids[-1], released=True, age_s=4000)
    begin(store, 2, base=ids[-1])
    one(2, 0, 200, **metrics(200))
    beat(store, 2, last=ids[-1], released=False, age_s=3000)
    begin(store, 3, base=ids[-1])
    one(3, 0, 300, **metrics(300))
    beat(store, 3, last=ids[-1], released=False, age_s=-900)
    return ids
