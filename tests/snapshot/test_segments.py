"""The history in segments: whatever is logged, staged, dropped, committed and resumed, a snapshot has its own rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors

from spotckpt.errors import Corrupt, LimitExceeded
from spotckpt.snapshot import metrics
from spotckpt.snapshot.keys import history_key
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.segments import (
    ROW_BYTES,
    SMALL_BYTES,
    Discontinued,
    Name,
    RowsStaged,
    SegmentRef,
    Size,
    joined,
    num_continued,
    num_kept,
    read_segment,
    segment_layout,
    slices,
)
from tests.snapshot.bucket import sid

BIG = SMALL_BYTES // ROW_BYTES + 1
"""Rows that are no longer small."""

Model = dict[tuple[str, str], dict[tuple[int, int], object]]
"""By metric, the value at each step and epoch."""


def values_of(history: History) -> Model:
    return {
        (set_name, name): dict(zip(zip(series.steps, series.epochs, strict=True), series, strict=True))
        for set_name, names in history.items()
        for name, series in names.items()
    }


@dataclass
class Staged:
    rows: RowsStaged
    data: bytes
    model: Model


@dataclass
class Life:
    """A trainer and its agent, with a bucket that keeps every segment that was ever sent."""

    history: History = field(default_factory=History)
    model: Model = field(default_factory=dict)
    step: int = 0
    sequence: int = 0
    pending: dict[str, Staged] = field(default_factory=dict)
    told: list[tuple[str, list[Size]]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    committed: list[tuple[tuple[SegmentRef, ...], Model, int]] = field(default_factory=list)
    sent_bytes: int = 0
    staged_bytes: int = 0

    def log(self, name: str, value: object, back: int, num: int = 1) -> None:
        for _ in range(num):
            self.step += 1
            step = max(0, self.step - back)
            self.history.log("train", {name: value}, step=step, given=name == "given")
            self.model.setdefault(("train", name), {})[step, -1] = value

    def stage(self) -> None:
        self.sequence += 1
        rows = self.history.stage()
        memory = memoryview(bytearray(rows.size_bytes))
        self.history.rows.copy(rows, memory)
        snapshot = str(sid(1, self.sequence, self.step))
        self.history.staged(snapshot)
        self.staged_bytes += rows.size_bytes
        model = {name: dict(values) for name, values in self.model.items()}
        self.pending[snapshot] = Staged(rows, bytes(memory), model)

    def commit(self, which: int) -> None:
        """One of what is staged; older ones are dropped."""
        if not self.pending:
            return
        names = sorted(self.pending)
        snapshot = names[which % len(names)]
        staged = self.pending[snapshot]
        self.pending = {name: one for name, one in self.pending.items() if name > snapshot}
        parent = self.committed[-1][0] if self.committed else ()
        kept = parent[: num_continued([one.size for one in parent], staged.rows)]
        before = Size(sum(one.rows for one in kept), sum(one.payload_bytes for one in kept))
        size = Size(staged.rows.end.rows - before.rows, staged.rows.end.payload_bytes - before.payload_bytes)
        segments = kept
        if size.rows:
            header = segment_layout(size, staged.rows.names).header
            body = b"".join([header, *slices(staged.rows, memoryview(staged.data), before)])
            key = history_key(sid(1, len(self.objects)))
            self.objects[key] = body
            self.sent_bytes += len(body)
            segments = (*kept, SegmentRef(key, len(body), blake3(body).hexdigest(), *size))
        self.committed.append((segments, staged.model, self.step))
        self.told.append((snapshot, [one.size for one in segments]))

    def tell(self) -> None:
        """The trainer hears of the newest commit only."""
        if self.told:
            self.history.committed(*self.told[-1])
            self.told.clear()

    def read(self, segments: tuple[SegmentRef, ...]) -> History:
        history = History()
        bodies = [read_segment(self.objects[one.key], one) for one in segments]
        history.load(joined(bodies, key="test"), [one.size for one in segments])
        return history

    def resume(self, which: int) -> None:
        """From any snapshot that was committed: a rewind is a shorter list."""
        self.pending.clear()
        self.told.clear()
        del self.committed[which % len(self.committed) + 1 if self.committed else 0 :]
        segments, model, self.step = self.committed[-1] if self.committed else ((), {}, 0)
        self.history = self.read(segments)
        self.model = {name: dict(values) for name, values in model.items()}

    def check(self) -> None:
        assert values_of(self.history) == {name: dict(sorted(points.items())) for name, points in self.model.items()}
        if self.committed:
            segments, model, _ = self.committed[-1]
            found = values_of(self.read(segments))
            assert found == {name: dict(sorted(points.items())) for name, points in model.items()}
            sizes = [one.size.num_bytes for one in segments]
            assert all(first > second for first, second in pairwise(sizes)), sizes


logs = st.tuples(
    st.just("log"),
    st.sampled_from(["loss", "given", "text"]),
    st.integers(0, 3),
    st.sampled_from([1, 1, 2, 30]),
)
acts = st.one_of(
    logs,
    logs,
    st.tuples(st.just("stage")),
    st.tuples(st.just("commit"), st.integers(0, 9)),
    st.tuples(st.just("tell")),
    st.tuples(st.just("resume"), st.integers(0, 9)),
)


@pytest.mark.parametrize("small_bytes", [0, 200])
@settings(max_examples=80)
@given(plan=st.lists(acts, max_size=40))
def test_each_snapshot_has_its_rows(small_bytes: int, plan: list[tuple]) -> None:
    life = Life()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spotckpt.snapshot.segments.SMALL_BYTES", small_bytes)
        patch.setattr(metrics, "_COMPACT_ROWS", 10)
        for number, (act, *arguments) in enumerate(plan):
            if act == "log":
                name, back, count = arguments
                value = f"é{number}" if name == "text" and number % 3 else float(number)
                life.log(name, value, back if name == "given" else 0, count)
            else:
                getattr(life, act)(*arguments)
        life.stage()
        life.commit(-1)
        life.check()
        life.resume(-1)
        life.check()


def run(snapshots: int, rows: int) -> Life:
    life = Life()
    for number in range(snapshots):
        life.log("loss", 0.5, 0, rows)
        life.log("valid", float(number), 0)
        life.stage()
        life.commit(-1)
        life.tell()
        del life.committed[:-1]
    return life


def test_what_a_snapshot_costs_does_not_grow_with_the_run() -> None:
    short, long = run(500, 30), run(2000, 30)
    for taken in ("sent_bytes", "staged_bytes"):
        each_short, each_long = getattr(short, taken) / 500, getattr(long, taken) / 2000
        assert each_long < 1.5 * each_short, taken
    (segments, _, _) = long.committed[-1]
    assert len(segments) <= math.log2(2000 * 31 * ROW_BYTES / SMALL_BYTES) + 2
    rows = sum(one.rows for one in segments)
    assert rows == 2000 * 31
    assert long.sent_bytes < 2000 * (SMALL_BYTES + 400) + rows * ROW_BYTES * math.log2(len(segments) + 2)


def test_the_list_is_geometric() -> None:
    sizes: list[Size] = []
    for _ in range(3000):
        kept = num_kept(sizes, BIG * ROW_BYTES)
        sizes[kept:] = [Size(BIG + sum(size.rows for size in sizes[kept:]), 0)]
        assert all(first.rows >= 2 * second.rows for first, second in pairwise(sizes))
    assert len(sizes) <= 12 and sum(size.rows for size in sizes) == 3000 * BIG


def test_nothing_new_is_no_segment() -> None:
    life = run(3, 10)
    sent, objects = life.sent_bytes, len(life.objects)
    life.stage()
    life.commit(-1)
    assert (life.sent_bytes, len(life.objects)) == (sent, objects)
    life.check()


def test_one_step_logged_again_and_again_does_not_pile_up() -> None:
    history = History()
    for number in range(15_000):
        history.log("train", {"loss": float(number), "running": float(number)}, step=number // 1000, given=True)
        if number % 10 == 0:
            history.stage()
    assert history["train"]["running"].steps == list(range(15))
    assert len(history.rows) < 3 * 4096
    assert list(history["train"]["running"]) == [float(1000 * number + 999) for number in range(15)]


def test_rows_that_were_thrown_out_are_no_part_of_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_COMPACT_ROWS", 10)
    monkeypatch.setattr("spotckpt.snapshot.segments.SMALL_BYTES", 0)
    life = Life()
    life.log("loss", 0.5, 0, 5)
    life.stage()
    life.commit(-1)
    life.tell()
    for number in range(40):
        life.step = 5
        life.history.freeze()
        life.log("given", float(number), 0)
        life.stage()
        life.commit(-1)
        life.check()
        if number % 3 == 0:
            life.tell()
    assert len(life.history.rows) < 30


def test_a_parent_that_is_too_short_cannot_be_gone_on_from() -> None:
    staged = RowsStaged(10, 5, 0, 0, {})
    assert num_continued([Size(10, 0)], staged) == 1
    with pytest.raises(Discontinued, match=r"9 rows.*from row 10"):
        num_continued([Size(9, 0)], staged)
    with pytest.raises(Discontinued):
        num_continued([Size(16, 0)], staged)
    assert num_continued([Size(16, 0)], RowsStaged(0, 3, 0, 0, {})) == 0


def segment(rows: int = 3) -> tuple[bytearray, SegmentRef]:
    life = Life()
    life.log("loss", 0.5, 0, rows)
    life.log("text", "é", 0)
    life.stage()
    life.commit(-1)
    ((reference,), _, _) = life.committed[-1]
    return bytearray(life.objects[reference.key]), reference


def test_a_segment_is_a_safetensors_file() -> None:
    body, reference = segment()
    arrays = load_safetensors(bytes(body))
    assert set(arrays) == {"step", "epoch", "series", "value", "payload"}
    assert arrays["step"].tolist() == [1, 2, 3, 4] and arrays["series"].tolist() == [0, 0, 0, 1]
    assert arrays["value"].tolist() == [0.5, 0.5, 0.5, len(arrays["payload"])]
    assert arrays["epoch"].dtype == np.int32 and reference.size == Size(4, len(arrays["payload"]))


def test_a_segment_that_lies_is_corrupt() -> None:
    body, reference = segment()
    with pytest.raises(Corrupt, match="column"):
        read_segment(body, SegmentRef(reference.key, reference.length, "", 5, reference.payload_bytes))
    columns = body[-4 * ROW_BYTES - reference.payload_bytes :]
    with pytest.raises(Corrupt, match="encoded values"):
        read_segment(segment_layout(reference.size, {0: Name("a", "b"), 1: Name("a", "c")}).header + columns, reference)
    with pytest.raises(Corrupt, match="no series"):
        read_segment(segment_layout(reference.size, {0: Name("a", "b")}).header + columns, reference)
    for place in range(8, len(body) - 4 * ROW_BYTES - reference.payload_bytes):
        broken = bytearray(body)
        broken[place] ^= 1
        try:
            read_segment(broken, reference)
        except (Corrupt, LimitExceeded):
            continue


def test_segments_must_agree_on_names() -> None:
    body, reference = segment()
    first = read_segment(body, reference)
    other = (first[0], {0: Name("train", "other"), 1: first[1][1]})
    with pytest.raises(Corrupt, match="different names"):
        joined([first, other], key="k")
    with pytest.raises(Corrupt, match="no name"):
        joined([(first[0], {1: first[1][1]})], key="k")
