"""The promise of the planner, on a small grid and a few random traces; and the world in which it is replayed."""

from __future__ import annotations

import math

import pytest

from tests.bench.interruptions import (
    AT_ONCE,
    ORACLE,
    PERIODIC,
    PLANNER,
    STRATEGIES,
    Case,
    Line,
    Outcome,
    World,
    at_once,
    last_periodic,
    replay,
)
from tests.bench.notices import GB, grid, losers, ratio, table, traces


def case(**changes: object) -> Case:
    """1 GB at 100 MB/s, a boundary every second, two minutes."""
    usual = {"step_s": 1.0, "evaluate_steps": 0, "evaluate_s": 0.0, "every_s": 300.0, "lead_s": 120.0}
    given = {**usual, "size_bytes": GB, "line": Line((0.0,), (1e8,)), "notice_at": 400.5, "gone_at": 520.5, **changes}
    return Case(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    cases = [*grid(sizes=(GB, 4 * GB), rates=(250e6,), moments=1), *traces(1, 60), *traces(2, 60)]
    return [replay(one) for one in cases]


def test_no_case_loses_a_snapshot_that_saving_at_once_would_have_committed(outcomes: list[Outcome]) -> None:
    assert not losers(outcomes)
    saved = sum(one.committed[AT_ONCE] > one.committed[PERIODIC] for one in outcomes)
    assert saved > len(outcomes) / 5, "in too few of them there was anything to lose"


def test_the_mean_loss_is_near_that_of_who_knows_the_future(outcomes: list[Outcome]) -> None:
    assert ratio(outcomes) <= 1.2
    for strategy in (AT_ONCE, PERIODIC):
        worse = sum(one.lost_s(strategy) for one in outcomes)
        assert worse > 1.1 * sum(one.lost_s(PLANNER) for one in outcomes)


def test_nobody_is_better_than_who_knows_the_future(outcomes: list[Outcome]) -> None:
    assert all(one.committed[strategy] <= one.committed[ORACLE] for one in outcomes for strategy in STRATEGIES)
    assert all(one.committed[ORACLE] <= len(one.passed) for one in outcomes)


def test_a_line_carries_what_its_rates_say() -> None:
    line = Line((0.0, 10.0, 20.0), (100.0, 50.0, 0.0))
    assert line.carried(5.0, 15.0) == 750.0
    assert line.carried(0.0, 100.0) == 1500.0
    assert line.when(5.0, 750.0) == 15.0
    assert line.when(15.0, 251.0) == math.inf
    assert line.when(15.0, 250.0) == 20.0


def test_by_hand() -> None:
    """A copy takes 0.26 s, an upload 10.3 s; the periodic snapshot of step 300 is committed at 311."""
    assert World(case(), last_periodic).run() == 300
    assert World(case(), at_once).run() == 401
    assert World(case(gone_at=411.0), at_once).run() == 300, "the upload was not over"
    found = replay(case())
    assert found.committed[ORACLE] == len(found.passed) - 11
    assert found.committed[PLANNER] in range(found.committed[ORACLE] - 14, found.committed[ORACLE] - 9), "the reserve"
    evaluating = case(evaluate_steps=400, evaluate_s=1000.0)
    assert replay(evaluating).committed[PLANNER] == 300, "no boundary comes, and nothing is sealed"


def test_the_table_has_a_line_for_each_lead(outcomes: list[Outcome]) -> None:
    lines = table("grid", outcomes)
    assert [line.split(",")[0].strip() for line in lines[1:]][:3] == ["all", "120 s", "118 s"]
    assert any("unknown" in line for line in lines)
