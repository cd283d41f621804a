"""Where interruptions are put."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.drill.plan import KINDS, LEAST_STEPS, plan
from spotckpt.errors import DrillFailed


@given(st.integers(0, 300), st.integers(1, 8), st.integers(0, 1000), st.permutations(KINDS), st.integers(1, 5))
def test_each_has_its_own_stretch_with_a_snapshot_before_it(extra, count, seed, kinds, num_kinds):
    num_steps = LEAST_STEPS * count + extra
    found = plan(num_steps, kinds[:num_kinds], count=count, seed=seed)
    assert len(found) == count
    before = 0
    for one in found:
        steps = [*one.saves, *([one.wait] if one.wait else []), one.hold]
        assert before < steps[0]
        assert steps == sorted(steps)
        assert one.hold < num_steps
        if one.kind.startswith("kill"):
            assert one.hold >= one.saves[-1] + 2, "a copy beside the training is sealed at the next boundary"
        before = one.hold


@given(st.integers(0, 1000))
def test_every_kind_comes_once_before_one_comes_twice(seed):
    assert {one.kind for one in plan(100, KINDS, count=len(KINDS), seed=seed)} == set(KINDS)


def test_the_same_seed_gives_the_same_plan():
    assert plan(100, KINDS, count=5, seed=7) == plan(100, KINDS, count=5, seed=7)
    assert plan(100, KINDS, count=5, seed=7) != plan(100, KINDS, count=5, seed=8)


def test_too_short_a_training_is_refused():
    with pytest.raises(DrillFailed, match="12 boundaries: too few for 3"):
        plan(12, KINDS, count=3, seed=0)
