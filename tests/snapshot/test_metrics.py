from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.errors import Corrupt, UsageError
from spotckpt.snapshot.metrics import Best, History

rows = st.lists(
    st.tuples(st.sampled_from(["train", "valid"]), st.sampled_from(["loss", "top1"]), st.floats(), st.integers(0, 9)),
    max_size=30,
)


def bits(values: list[float]) -> list[bytes]:
    return [struct.pack(">d", value) for value in values]


@given(rows)
def test_state_and_load_keep_every_bit_and_go_on(logged: list[tuple[str, str, float, int]]) -> None:
    history = History()
    for step, (set_name, name, value, epoch) in enumerate(logged):
        history.log(set_name, name, value, step=step, epoch=epoch)
    again = History()
    again.log("old", "x", 1.0, step=0)
    again.load(history.state())
    assert list(again) == list(history)
    for set_name, names in history.items():
        for name, series in names.items():
            other = again[set_name][name]
            assert bits(list(other)) == bits(list(series))
            assert (other.steps, other.epochs) == (series.steps, series.epochs)
    again.log("train", "loss", 7.0, step=999)
    assert again["train"]["loss"][-1] == 7.0


def test_state_is_a_copy_with_an_axis() -> None:
    history = History()
    history.log("train", "loss", 1.5, step=3)
    state = history.state()["train"]["loss"]
    assert state["axis"] == "step"
    assert (state["at"].dtype, state["epoch"].dtype, state["value"].dtype) == (np.int64, np.int64, np.float64)
    history.log("train", "loss", 2.5, step=4)
    assert state["value"].tolist() == [1.5] and state["epoch"].tolist() == [-1]


def test_the_same_step_and_epoch_again_replaces() -> None:
    history = History()
    for value, step, epoch in ((1.0, 1, 0), (2.0, 2, 0), (3.0, 2, 1), (4.0, 1, 0), (5.0, 2, 1)):
        history.log("train", "loss", value, step=step, epoch=epoch)
    series = history["train"]["loss"]
    assert list(series) == [4.0, 2.0, 5.0]
    assert (series.steps, series.epochs) == ([1, 2, 2], [0, 0, 1])


def test_numbers_of_all_kinds_become_floats() -> None:
    history = History()
    for step, value in enumerate((True, 3, 0.1, np.float32(0.1), np.array(2), np.int64(5), math.inf)):
        history.log("a", "b", value, step=step)
    assert list(history["a"]["b"]) == [1.0, 3.0, 0.1, float(np.float32(0.1)), 2.0, 5.0, math.inf]


@pytest.mark.parametrize("value", [[1.0], np.zeros(1), np.zeros((2, 2)), "1.0", None, 1j, np.complex64(1), 10**400])
def test_anything_that_is_not_one_number_is_refused(value: object) -> None:
    history = History()
    with pytest.raises(UsageError, match="train/loss"):
        history.log("train", "loss", value, step=0)
    assert not history


def test_images_are_said_to_be_not_supported_yet() -> None:
    with pytest.raises(UsageError, match="non-scalar values are not supported yet"):
        History().log("train", "picture", np.zeros((3, 8, 8)), step=0)


@pytest.mark.parametrize(("set_name", "name"), [("", "a"), ("a/b", "c"), ("a:b", "c"), ("a", ""), ("a", "b:c")])
def test_names_that_no_selector_could_name(set_name: str, name: str) -> None:
    with pytest.raises(UsageError):
        History().log(set_name, name, 1.0, step=0)


def test_best_ignores_nan_and_takes_the_earliest_of_equals() -> None:
    history = History()
    for step, value in enumerate((math.nan, 2.0, 5.0, 2.0, 5.0, math.nan)):
        history.log("valid", "top1", value, step=step, epoch=step // 2)
    assert history.best("valid", "top1", "max") == Best(5.0, 2, 1)
    assert history.best("valid", "top1", "min") == Best(2.0, 1, 0)
    assert history.best("valid", "other", "min") is None
    assert history.bests() == {"valid/top1:min": Best(2.0, 1, 0), "valid/top1:max": Best(5.0, 2, 1)}
    assert math.isnan(history.latest()["valid/top1"])


@given(st.lists(st.floats(-1e100, 1e100), min_size=1))
def test_the_mean_is_correctly_rounded(values: list[float]) -> None:
    history = History()
    for step, value in enumerate(values):
        history.log("train", "loss", value, step=step, epoch=4)
    exact = float(sum(map(Fraction, values)))
    assert history.mean("train", "loss", 4) == exact / len(values)
    assert math.isnan(history.mean("train", "loss", 3))
    assert math.isnan(history.mean("none", "loss", 4))


def test_the_mean_of_infinities() -> None:
    history = History()
    for step, value in enumerate((math.inf, 1.0)):
        history.log("train", "loss", value, step=step, epoch=0)
    assert history.mean("train", "loss", 0) == math.inf
    history.log("train", "loss", -math.inf, step=9, epoch=0)
    assert math.isnan(history.mean("train", "loss", 0))


@pytest.mark.parametrize(
    "change",
    [{"axis": "epoch"}, {"axis": None}, {"value": np.zeros(2)}, {"at": None}, {"at": np.array([0.5])}],
    ids=repr,
)
def test_a_state_of_another_shape_is_corrupt_and_changes_nothing(change: dict) -> None:
    history = History()
    history.log("train", "loss", 1.0, step=0)
    state = {"train": {"loss": {**history.state()["train"]["loss"], **change}}}
    with pytest.raises(Corrupt, match="train/loss"):
        history.load(state)
    assert list(history["train"]["loss"]) == [1.0]
