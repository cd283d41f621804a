"""The metric history of a snapshot, sent and read without anything else of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spotckpt.config import Keep
from spotckpt.errors import Corrupt
from spotckpt.snapshot import continuing, history
from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.fetch import read_manifest, verify
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.keys import SnapshotId, history_key, manifest_key
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.prune import prune
from spotckpt.snapshot.reuse import Previous
from spotckpt.snapshot.save import commit, upload
from spotckpt.snapshot.segments import Discontinued, Size
from spotckpt.store.base import Span, Stat, Store
from tests.snapshot.bucket import Wrapped, beat, begin, local_store, raises_naming, sid, staged

ROWS = 2000
"""Logged for each snapshot: enough for a segment of their own."""


class Counting(Wrapped):
    """Counts what is asked for and how many bytes come."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.read_bytes = 0
        self.requests: list[str] = []

    def read(self, key: str, **options: Any) -> bytes:
        data = super().read(key, **options)
        self.read_bytes += len(data)
        self.requests.append(key)
        return data

    def read_into(self, key: str, spans: list[Span], **options: Any) -> None:  # type: ignore[override]
        self.read_bytes += sum(len(view) for _, views in spans for view in views)
        self.requests.append(key)
        super().read_into(key, spans, **options)

    def stat(self, key: str, **options: Any) -> Stat:
        self.requests.append(key)
        return super().stat(key, **options)


class Training:
    """A trainer that logs, and its agent, in one."""

    def __init__(self, store: Store, attempt: int = 1, base: Manifest | None = None) -> None:
        self.store = store
        self.run_id = ensure_run(store).run_id
        self.attempt = attempt
        self.history = History() if base is None else read_history(store, base)
        self.step = 0 if base is None else base.step
        self.parent: SnapshotId | None = None if base is None else base.snapshot
        self.previous: Previous | None = None
        self.weight = np.zeros(100_000, "<f4")
        self.sequence = 0

    def log(self, count: int = ROWS) -> None:
        for _ in range(count):
            self.step += 1
            self.history.log("train", {"loss": 1 / self.step}, step=self.step)

    def save(self, *, tell: bool = True) -> Manifest:
        self.sequence += 1
        made, data = staged(
            sid(self.attempt, self.sequence, self.step),
            {"weight": self.weight},
            history=self.history,
            latest=self.history.latest(),
        )
        manifest, self.previous = upload(
            self.store, made, data, run_id=self.run_id, parent=self.parent, previous=self.previous
        )
        commit(self.store, manifest)
        self.parent = manifest.snapshot
        if tell:
            self.history.committed(str(manifest.snapshot), [one.size for one in manifest.history])
        return manifest


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(local_store(tmp_path))


def steps_of(store: Store, manifest: Manifest) -> list[int]:
    return read_history(store, manifest)["train"]["loss"].steps


def test_a_history_is_read_without_anything_else(store: Counting) -> None:
    training = Training(store)
    for step, value in enumerate((1.5, math.nan, math.inf)):
        training.history.log("train", {"loss": value}, step=step, epoch=0)
    training.history.log("valid", {"top1": 0.5}, step=3)
    manifest = training.save()
    store.requests.clear()
    found = read_history(store, manifest)
    assert {name: list(names) for name, names in found.items()} == {"train": ["loss"], "valid": ["top1"]}
    steps, epochs, values = found["train"]["loss"].columns()
    assert (steps.tolist(), epochs.tolist()) == ([0, 1, 2], [0, 0, 0])
    np.testing.assert_array_equal(values, [1.5, math.nan, math.inf])
    assert store.requests == [history_key(manifest.snapshot)]


def test_a_run_without_metrics_has_an_empty_history(store: Counting) -> None:
    manifest = Training(store).save()
    assert manifest.history == () and dict(read_history(store, manifest)) == {}


def test_a_segment_is_sent_once_and_named_again(store: Counting) -> None:
    training = Training(store)
    training.log(4 * ROWS)
    first = training.save()
    training.log()
    second = training.save()
    assert second.history[0] == first.history[0] and second.history[1].rows == ROWS
    assert second.uploaded_bytes < ROWS * 22 + 2000
    third = training.save()
    assert third.history == second.history and third.uploaded_bytes < 2000
    assert steps_of(store, third) == list(range(1, 5 * ROWS + 1))


def test_a_value_that_is_logged_again_after_it_was_sent_is_sent_again(store: Counting) -> None:
    training = Training(store)
    training.log(4 * ROWS)
    first = training.save()
    training.history.log("train", {"loss": -1.0}, step=training.step)
    second = training.save()
    assert read_history(store, first)["train"]["loss"][-1] == 1 / training.step
    assert read_history(store, second)["train"]["loss"][-1] == -1.0
    assert steps_of(store, second) == list(range(1, 4 * ROWS + 1))


def test_a_trainer_that_was_told_nothing_sends_all(store: Counting) -> None:
    training = Training(store)
    training.log(4 * ROWS)
    training.save(tell=False)
    training.log()
    manifest = training.save(tell=False)
    assert [one.rows for one in manifest.history] == [5 * ROWS]
    assert steps_of(store, manifest) == list(range(1, 5 * ROWS + 1))


def test_what_was_staged_before_the_trainer_heard_of_a_commit_goes_on_from_it(store: Counting) -> None:
    training = Training(store)
    training.log(9 * ROWS)
    training.save()
    training.log(2 * ROWS)
    second = training.save(tell=False)
    training.log()
    third = training.save()
    assert third.history[:2] == second.history and [one.rows for one in third.history] == [9 * ROWS, 2 * ROWS, ROWS]
    assert steps_of(store, third) == list(range(1, 12 * ROWS + 1))


def test_a_rewind_is_a_shorter_list(store: Counting) -> None:
    training = Training(store)
    begin(store, 1)
    training.log(4 * ROWS)
    first = training.save()
    training.log()
    training.save()
    begin(store, 2, first.snapshot)
    again = Training(store, 2, first)
    again.log(3)
    manifest = again.save()
    assert [one.rows for one in manifest.history] == [4 * ROWS, 3] and manifest.history[0] == first.history[0]
    assert steps_of(store, manifest) == list(range(1, 4 * ROWS + 4))


@pytest.mark.parametrize("damage", ["gone", "short", "flipped", "longer"])
def test_a_damaged_segment_is_named(store: Counting, tmp_path: Path, damage: str) -> None:
    training = Training(store)
    training.log()
    manifest = training.save()
    path = tmp_path / history_key(manifest.snapshot)
    data = bytearray(path.read_bytes())
    data[-6 * ROWS - 8] ^= 1  # the last value's lowest byte
    new = {"gone": None, "short": data[:-1], "flipped": data, "longer": data + b"\0"}[damage]
    path.unlink() if new is None else path.write_bytes(new)
    for at_once in (history._AT_ONCE_BYTES, 0):
        with (
            pytest.MonkeyPatch.context() as patch,
            raises_naming(Corrupt, "history.safetensors", str(manifest.snapshot)),
        ):
            patch.setattr(history, "_AT_ONCE_BYTES", at_once)
            read_history(store, manifest)
    (problem,) = verify(store, manifest.snapshot).problems
    assert history_key(manifest.snapshot) in problem


def test_a_segment_that_is_gone_is_sent_again_if_its_rows_are_there(store: Counting, tmp_path: Path) -> None:
    training = Training(store)
    training.log(9 * ROWS)
    training.save()
    training.log(2 * ROWS)
    second = training.save(tell=False)
    (tmp_path / second.history[1].key).unlink()
    training.log()
    third = training.save()
    assert [one.rows for one in third.history] == [9 * ROWS, 3 * ROWS]
    assert steps_of(store, third) == list(range(1, 12 * ROWS + 1))


def test_a_segment_that_is_gone_makes_the_next_snapshot_bring_all(store: Counting, tmp_path: Path) -> None:
    training = Training(store)
    training.log(9 * ROWS)
    first = training.save()
    (tmp_path / first.history[0].key).unlink()
    training.log()
    with raises_naming(Discontinued, history_key(first.snapshot), "not there"):
        training.save()
    training.history.committed(None, ())
    second = training.save()
    assert [one.rows for one in second.history] == [10 * ROWS]
    assert steps_of(store, second) == list(range(1, 10 * ROWS + 1))


def test_a_parent_whose_manifest_cannot_be_read_makes_the_next_snapshot_bring_all(
    store: Counting, tmp_path: Path
) -> None:
    training = Training(store)
    training.log(9 * ROWS)
    first = training.save()
    (tmp_path / manifest_key(first.snapshot)).write_bytes(b"{}")
    training.log()
    training.previous = None  # another agent, after the first died
    with raises_naming(Discontinued, str(first.snapshot)):
        training.save()
    training.history.committed(None, ())
    assert steps_of(store, training.save()) == list(range(1, 10 * ROWS + 1))


def test_pruning_leaves_the_segments_that_are_named(store: Counting, tmp_path: Path) -> None:
    training = Training(store)
    begin(store, 1)
    manifests = []
    for count in (9, 2, 1, 1):
        training.log(count * ROWS)
        manifests.append(training.save())
    beat(store, 1, last=manifests[-1].snapshot, released=True)
    named = {one.key for one in manifests[-1].history}
    there = {one.key for manifest in manifests for one in manifest.history}
    assert there - named, "one was taken in by a later one"
    prune(store, Keep.parse("last=1"))
    left = {stat.key for stat in store.list("packs/") if stat.key.endswith("history.safetensors")}
    assert left == named
    assert verify(store, manifests[-1].snapshot).problems == ()


@pytest.mark.fault(87)
def test_the_last_snapshot_before_a_nan_is_not_pruned(store: Counting) -> None:
    training = Training(store)
    begin(store, 1)
    training.log(10)
    finite = training.save().snapshot
    for value in (math.nan, math.inf, math.nan):
        training.step += 1
        training.history.log("train", {"loss": value}, step=training.step)
        last = training.save().snapshot
    beat(store, 1, last=last, released=True)
    pruned = prune(store, Keep.parse("last=1"))
    assert set(pruned.plan.keep) == {finite, last} and "NaN" in pruned.plan.keep[finite]
    assert steps_of(store, read_manifest(store, finite)) == list(range(1, 11))


def test_many_snapshots_cost_what_the_first_ones_did(tmp_path: Path) -> None:
    """1,200 of them: bytes sent, bytes staged and requests, of the first quarter and of the last."""
    store = Counting(local_store(tmp_path))
    training = Training(store)
    sent, took, size, asked = [], [], [], []
    for _ in range(1200):
        training.log(25)
        rows = training.history.stage()
        took.append(rows.size_bytes)
        data = memoryview(bytearray(rows.size_bytes))
        training.history.rows.copy(rows, data)
        store.requests.clear()
        found = continuing.continue_history(
            store, rows, data, parent=training.parent, previous=training.previous, run_id="", deadline=None
        )
        training.sequence += 1
        snapshot = sid(1, training.sequence, training.step)
        segments = found.send(store, snapshot, deadline=None, progress=None)
        training.parent, training.previous = snapshot, Previous(snapshot, (), {}, segments)
        training.history.staged(str(snapshot))
        training.history.committed(str(snapshot), [Size(one.rows, one.payload_bytes) for one in segments])
        sent.append(found.length)
        size.append(len(segments))
        asked.append(len(store.requests))
    assert sum(one.rows for one in segments) == 30_000
    for counts in (sent, took):
        assert sum(counts[-300:]) < 1.5 * sum(counts[:300])
    assert max(size) <= 8 and max(asked) <= 8
