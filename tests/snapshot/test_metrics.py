from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.errors import Corrupt, EncodeError, UsageError
from spotckpt.snapshot import metrics
from spotckpt.snapshot.metrics import Best, History
from spotckpt.snapshot.values import MAX_VALUE_BYTES, decode_value, encode_value


def bits(values: list[float]) -> list[bytes]:
    return [struct.pack(">d", value) for value in values]


def logged(*values: float, set: str = "train", name: str = "loss", epoch: int = -1) -> History:
    history = History()
    for step, value in enumerate(values):
        history.log(set, {name: value}, step=step, epoch=epoch)
    return history


NAN_WITH_PAYLOAD = struct.unpack(">d", bytes.fromhex("7ff80000deadbeef"))[0]


@pytest.mark.fault(87)
@given(st.lists(st.floats()))
def test_every_bit_of_a_number_is_kept(values: list[float]) -> None:
    values = [*values, NAN_WITH_PAYLOAD, -math.inf, -0.0]
    series = logged(*values)["train"]["loss"]
    assert bits(list(series)) == bits(values) and bits([series[-1]]) == bits([-0.0])
    steps, epochs, columns = series.columns()
    assert bits(columns.tolist()) == bits(values)
    assert (steps.tolist(), epochs.tolist()) == (list(range(len(values))), [-1] * len(values))
    assert (steps.dtype, epochs.dtype, columns.dtype) == (np.int64, np.int64, np.float64)
    assert not columns.flags.writeable


def test_the_same_step_and_epoch_again_replaces() -> None:
    history = History()
    for value, step, epoch in ((1.0, 1, 0), (2.0, 2, 0), (3.0, 2, 1), (4.0, 1, 0), (5.0, 2, 1), (6.0, 2, -1)):
        history.log("train", {"loss": value}, step=step, epoch=epoch)
    series = history["train"]["loss"]
    assert list(series) == [4.0, 2.0, 5.0, 6.0] and len(series) == 4
    assert (series.steps, series.epochs) == ([1, 2, 2, 2], [0, 0, 1, -1])


def test_a_step_that_is_given_has_one_value_whatever_the_epoch() -> None:
    history = History()
    for value, step, epoch in ((1.0, 5, 0), (2.0, 3, 0), (3.0, 5, 1), (4.0, 3, 1), (5.0, 4, 1)):
        history.log("samples", {"loss": value}, step=step, epoch=epoch, given=True)
    series = history["samples"]["loss"]
    assert (series.steps, list(series), series.epochs) == ([3, 4, 5], [4.0, 5.0, 3.0], [1, 1, 1])
    assert history.best("samples", "loss", "min") == Best(3.0, 5, 1)
    assert history.latest() == {"samples/loss": 3.0}


def test_numbers_of_all_kinds_become_floats() -> None:
    history = History()
    for step, value in enumerate((True, 3, 0.1, np.float32(0.1), np.array(2), np.int64(5), math.inf)):
        history.log("a", {"b": value}, step=step)
    assert list(history["a"]["b"]) == [1.0, 3.0, 0.1, float(np.float32(0.1)), 2.0, 5.0, math.inf]
    assert history["a"]["b"].is_scalar
    with pytest.raises(UsageError, match="a/c"):
        history.log("a", {"c": 10**400}, step=0)
    assert "c" not in history["a"]


VALUES = ["text é", None, [1.0, "b"], {"recall": (1, 2)}, 1j, np.zeros((2, 0)), np.eye(3, dtype="<f4"), b"\0"]


def test_values_that_are_not_numbers_come_back_as_they_were() -> None:
    history = History()
    for step, value in enumerate([*VALUES, 0.5]):
        history.log("valid", {"x": value, "loss": 1.0}, step=step)
    series = history["valid"]["x"]
    assert not series.is_scalar and history["valid"]["loss"].is_scalar
    for found, value in zip(series, [*VALUES, 0.5], strict=True):
        assert type(found) is type(value)
        np.testing.assert_array_equal(found, value)
    assert "valid/x" not in history.latest() and series.steps == list(range(9))
    history.log("valid", {"x": "again"}, step=2)
    assert series[2] == "again" and series[-1] == 0.5
    with pytest.raises(UsageError, match="valid/x has values that are not numbers"):
        series.columns()


def test_a_value_that_cannot_be_stored_is_named_and_nothing_is_logged() -> None:
    history = History()
    with pytest.raises(EncodeError, match=r"valid/x\.a\[0\]: .*object"):
        history.log("valid", {"x": {"a": [object()]}}, step=0)
    with pytest.raises(EncodeError, match="valid/x"):
        history.log("valid", {"x": np.zeros(MAX_VALUE_BYTES + 1, "u1")}, step=0)
    assert not history and not history.rows


@given(st.binary(max_size=60))
def test_no_bytes_in_the_place_of_a_value_do_harm(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_value(data, "a/b")
    good = encode_value([np.arange(4)], "a/b")
    for cut in range(len(good)):
        with pytest.raises(Corrupt):
            decode_value(good[:cut], "a/b")


@pytest.mark.parametrize(("set_name", "name"), [("", "a"), ("a/b", "c"), ("a:b", "c"), ("a", ""), ("a", "b:c")])
def test_names_that_no_selector_could_name(set_name: str, name: str) -> None:
    with pytest.raises(UsageError):
        History().log(set_name, {name: 1.0}, step=0)


def test_there_is_an_end_to_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 2)
    history = History()
    history.log("a", {"b": 1.0, "c": 1.0}, step=0)
    with pytest.raises(UsageError, match="a/d is one too many"):
        history.log("a", {"d": 1.0}, step=0)


def test_best_ignores_nan_and_takes_the_earliest_of_equals() -> None:
    history = History()
    for step, value in enumerate((math.nan, 2.0, 5.0, 2.0, 5.0, math.nan)):
        history.log("valid", {"top1": value}, step=step, epoch=step // 2)
    assert history.best("valid", "top1", "max") == Best(5.0, 2, 1)
    assert history.best("valid", "top1", "min") == Best(2.0, 1, 0)
    assert history.best("valid", "other", "min") is None
    assert history.bests() == {"valid/top1:min": Best(2.0, 1, 0), "valid/top1:max": Best(5.0, 2, 1)}
    assert math.isnan(history.latest()["valid/top1"])
    assert history.top("valid", "top1", "max", 3) == [Best(5.0, 2, 1), Best(5.0, 4, 2), Best(2.0, 1, 0)]
    assert history.top("valid", "top1", "min", 1) == [Best(2.0, 1, 0)] and history.top("valid", "b", "min", 1) == []


@given(st.lists(st.tuples(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, 2.0]), st.integers(0, 6))))
def test_best_is_that_of_the_values_that_count(logged: list[tuple[float, int]]) -> None:
    history, model = History(), dict[int, float]()
    for value, step in logged:
        history.log("a", {"b": value}, step=step, given=True)
        model[step] = value
        there = {step: value for step, value in sorted(model.items()) if not math.isnan(value)}
        for mode, better in (("min", min), ("max", max)):
            expected = better(there, key=there.__getitem__) if there else None
            found = history.best("a", "b", mode)  # type: ignore[arg-type]
            assert (None if found is None else found.step) == expected


def test_what_improved() -> None:
    def improved(*values: float, **options: Any) -> bool:
        return logged(*values).improved("train", "loss", **{"mode": "min", "patience": 2, "by": 0.0, **options})

    assert improved() and improved(1.0) and improved(1.0, 2.0)
    assert improved(3.0, 2.0, 2.5) and not improved(2.0, 2.0, 2.5)
    assert improved(2.0, 3.0, 1.0) and improved(2.0, 1.0, 3.0)
    assert not improved(1.0, 2.0, math.nan) and not improved(1.0, math.nan, math.nan)
    assert not improved(2.0, 3.0, 1.0, by=1.0) and improved(2.0, 3.0, 0.5, by=1.0)
    assert improved(1.0, 2.0, 3.0, mode="max") and not improved(3.0, 2.0, 3.0, mode="max")
    assert improved(5.0, 4.0, 3.0, patience=1) and not improved(5.0, 4.0, 4.0, patience=1)
    assert History().improved("no", "such", "min", patience=1, by=0.0)


@given(st.lists(st.floats(-1e100, 1e100), min_size=1))
def test_the_mean_is_correctly_rounded(values: list[float]) -> None:
    history = logged(*values, epoch=4)
    exact = float(sum(map(Fraction, values)))
    assert history.mean("train", "loss", 4) == exact / len(values)
    assert math.isnan(history.mean("train", "loss", 3))
    assert math.isnan(history.mean("none", "loss", 4))


def test_the_mean_of_infinities() -> None:
    history = logged(math.inf, 1.0, epoch=0)
    assert history.mean("train", "loss", 0) == math.inf
    history.log("train", {"loss": -math.inf}, step=9, epoch=0)
    assert math.isnan(history.mean("train", "loss", 0))


def test_the_mean_of_an_epoch_that_spans_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spotckpt.snapshot.series._BLOCK_ROWS", 7)
    history = History()
    for step in range(60):
        history.log("train", {"loss": float(step), "other": 0.0}, step=step, epoch=step // 20)
    assert [history.mean("train", "loss", epoch) for epoch in range(3)] == [9.5, 29.5, 49.5]


@pytest.mark.fault(87)
def test_a_metric_that_turns_nan_is_said_once() -> None:
    said: list[str] = []
    history = History(said.append)
    for step, value in enumerate((1.0, math.nan, 2.0, math.inf)):
        history.log("train", {"loss": value, "lr": 0.1}, step=step)
    assert said == ["warning: train/loss is nan at step 1; the last snapshot without it is kept"]


class Full(list[float]):
    """A column for which there is no memory."""

    def append(self, value: float) -> None:
        raise MemoryError


def test_a_row_for_which_there_is_no_memory_is_not_half_there() -> None:
    history = logged(1.0, 2.0)
    column, history.rows.values = history.rows.values, Full(history.rows.values)  # type: ignore[assignment]
    for name in ("loss", "new"):
        with pytest.raises(MemoryError):
            history.log("train", {name: 3.0}, step=2)
    history.rows.values = column
    history.log("train", {"loss": 4.0}, step=3)
    assert (history["train"]["loss"].steps, list(history["train"]["loss"])) == ([0, 1, 3], [1.0, 2.0, 4.0])
    assert len(history["train"]["new"]) == 0


def test_a_point_takes_no_more_than_24_bytes() -> None:
    import tracemalloc

    history = logged(0.0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(1, 200_001):
        history.log("train", {"loss": 0.5}, step=step)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken / 200_000 <= 24


def test_what_is_new_stays_so_when_rows_are_thrown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_COMPACT_ROWS", 10)
    history = History()
    for value in range(9):  # each replaces the one before, which was staged
        history.log("train", {"loss": float(value)}, 3)
        history.freeze()
    history.log("valid", {"old": 0.5}, 3)
    history.mark()
    history.log("valid", {"top1": 0.6}, 4)
    rows = len(history.rows)
    for value in range(9):
        history.log("train", {"loss": float(value)}, 3)
        history.freeze()
    assert len(history.rows) < rows, "nothing was thrown out"
    assert history.latest(new=True) == {"valid/top1": 0.6, "train/loss": 8.0}
    assert history.latest().keys() == {"valid/top1", "train/loss", "valid/old"}


def test_no_value_of_a_call_is_lost_when_rows_are_thrown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_COMPACT_ROWS", 10)
    history = History()
    logged = 0
    for step in range(60):
        for value in range(3):
            history.log("train", {"again": float(value)}, step)
            history.freeze()
            logged += 1
        history.log("train", {"again": 3.0, "once": float(step)}, step)
        history.freeze()
        logged += 2
        assert list(history["train"]["once"]) == [float(one) for one in range(step + 1)]
    assert len(history.rows) < logged, "nothing was thrown out"
