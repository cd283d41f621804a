"""The demo's comparison can fail, and says where."""

from __future__ import annotations

import numpy as np
import pytest

from spotckpt.demo.compare import compare, read_state
from spotckpt.errors import Corrupt


def state():
    return {
        "model/fc.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "model/bn.num_batches_tracked": np.array(7),
        "optimizer/state/0/momentum_buffer": np.full(3, np.nan, np.float32),
        "scheduler/last_epoch": np.array(4),
        "rng/torch": np.arange(16, dtype=np.uint8),
        "curve/train-loss": np.array([2.0, 1.0, 0.5]),
    }


def test_the_same_state_is_equal_nan_included():
    verdict = compare(state(), state())
    assert verdict.difference == ""
    assert verdict.counts == {"model": 2, "optimizer": 1, "scheduler": 1, "rng": 1, "curve": 3}
    assert verdict.compared_bytes == sum(array.nbytes for array in state().values())


@pytest.mark.parametrize("name", sorted(state()))
def test_a_flipped_bit_is_found_in_every_array(name):
    resumed = state()
    data = bytearray(resumed[name].tobytes())
    data[-1] ^= 1
    resumed[name] = np.frombuffer(bytes(data), resumed[name].dtype).reshape(resumed[name].shape)
    assert compare(state(), resumed).difference.startswith(name)


def test_the_first_difference_is_named_with_its_place_and_both_values():
    resumed = state()
    resumed["model/fc.weight"][2, 1] = 8.5
    verdict = compare(state(), resumed)
    assert "model/fc.weight[2, 1]" in verdict.difference
    assert "9.0" in verdict.difference
    assert "8.5" in verdict.difference


def test_zero_and_minus_zero_differ():
    resumed = state()
    resumed["model/fc.weight"][0, 0] = -0.0
    assert compare(state(), resumed).difference.startswith("model/fc.weight[0, 0]")


@pytest.mark.parametrize("name", sorted(state()))
def test_what_only_one_run_has_is_a_difference(name):
    less = state()
    del less[name]
    assert compare(less, state()).difference == f"{name} is only in the resumed run"
    assert compare(state(), less).difference == f"{name} is only in the plain run"


def test_another_dtype_or_shape_is_a_difference():
    other = state() | {"scheduler/last_epoch": np.array(4.0)}
    assert "int64[] in the plain run, float64[] in the resumed one" in compare(state(), other).difference
    shorter = state() | {"curve/train-loss": np.array([2.0, 1.0])}
    assert "float64[3] in the plain run, float64[2]" in compare(state(), shorter).difference


def test_two_runs_that_both_lack_something_do_not_pass():
    without = {name: array for name, array in state().items() if not name.startswith("rng/")}
    assert compare(without, without).difference == "neither run has any RNG states"
    assert compare({}, {}).difference


def test_an_end_state_that_cannot_be_read_is_one_error(tmp_path):
    with pytest.raises(Corrupt, match=r"missing\.npz cannot be read"):
        read_state(tmp_path / "missing.npz")
    path = tmp_path / "cut.npz"
    np.savez(path, **state())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Corrupt, match=r"cut\.npz cannot be read"):
        read_state(path)


def test_an_end_state_is_never_unpickled(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, evil=np.array([{"a": 1}], dtype=object))
    with pytest.raises(Corrupt):
        read_state(path)


def test_an_end_state_comes_back_as_it_was(tmp_path):
    np.savez(tmp_path / "end.npz", **state())
    assert compare(state(), read_state(tmp_path / "end.npz")).difference == ""
