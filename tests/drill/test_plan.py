"""Where interruptions are put."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.drill.plan import KINDS, LEAST_STEPS, plan, put_off
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
    with pytest.raises(DrillFailed, match=r"12 boundaries: an interruption needs 6, and 3 .*--interruptions 2"):
        plan(12, KINDS, count=3, seed=0)
    with pytest.raises(DrillFailed, match=r"5 boundaries.*give it more steps$"):
        plan(5, KINDS, count=1, seed=0)


@given(st.integers(0, 60), st.integers(0, 1000))
def test_what_a_training_has_passed_is_put_off(after, seed):
    pending = plan(60, KINDS, count=5, seed=seed)
    found = put_off(pending, after=after)
    before = after
    for one, was in zip(found, pending, strict=True):
        assert before < one.first
        steps, planned = [[*each.saves, each.wait, each.hold] for each in (one, was)]
        moved = {now - then for now, then in zip(steps, planned, strict=True) if then}
        assert len(moved) == 1, "together"
        assert min(moved) >= 0
        assert one.wait == 0 or was.wait
        before = one.hold


def test_nothing_is_put_off_without_need():
    pending = plan(60, KINDS, count=5, seed=1)
    for place, one in enumerate(pending):
        assert put_off(pending[place:], after=one.first - 1) == pending[place:]
