"""What is left of many points looks like all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.curves.thin import smooth, thin


def test_few_points_stay_as_they_are() -> None:
    assert thin(np.arange(5), np.array([1.0, math.nan, 2.0, math.inf, 3.0]), 2).tolist() == [0, 1, 2, 3, 4]
    assert thin(np.arange(0), np.zeros(0), 10).tolist() == []


@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=400),
    st.integers(1, 20),
    st.randoms(use_true_random=False),
)
def test_extremes_gaps_and_infinities_of_every_column_stay(values, columns, chance) -> None:
    y = np.array(values)
    x = np.sort(np.array([chance.randrange(1000) for _ in values]))
    kept = thin(x, y, columns)
    assert kept[0] == 0 and kept[-1] == len(y) - 1
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= max(4 * columns, 7 * columns)
    if len(y) <= 4 * columns:
        return
    column = np.searchsorted(np.linspace(x[0], x[-1], columns + 1)[1:-1], x, side="right")
    for number in range(columns):
        inside, shown = y[column == number], y[kept[column[kept] == number]]
        assert np.isnan(inside).any() == np.isnan(shown).any()
        for extreme in (np.nanmin, np.nanmax):
            if not np.isnan(inside).all():
                assert extreme(shown) == extreme(inside)


def test_one_peak_among_ten_million_is_drawn() -> None:
    y = np.zeros(10_000_000)
    y[7_654_321], y[1_234_567], y[3] = 5.0, math.nan, -math.inf
    kept = thin(np.arange(len(y)), y, 1000)
    assert len(kept) < 4100
    assert {7_654_321, 1_234_567, 3} <= set(kept.tolist())


def test_the_mean_of_the_last_values() -> None:
    y = np.array([1.0, 2.0, 3.0, math.nan, 5.0, math.inf, 7.0])
    expected = [1.0, 1.5, 2.5, math.nan, 5.0, math.nan, 7.0]
    assert smooth(np.arange(7), y, 2) == pytest.approx(np.array(expected), nan_ok=True)
    assert smooth(np.arange(7), y, 1)[:3] == pytest.approx([1.0, 2.0, 3.0])
    assert smooth(np.zeros(0), np.zeros(0), 3).tolist() == []


def test_the_mean_of_many_large_values_is_exact_enough_to_be_drawn() -> None:
    y = 1e9 + np.random.default_rng(0).normal(size=1_000_000)
    assert smooth(np.arange(1_000_000), y, 10)[-1] == pytest.approx(y[-10:].mean(), abs=1e-5)
