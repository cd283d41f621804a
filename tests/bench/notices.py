"""The cases in which notices are replayed: a grid, and random traces that nothing was tuned on; and what came of it."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.bench.interruptions import AT_ONCE, ORACLE, PLANNER, STRATEGIES, Case, Line, Outcome

GB = 10**9
EVERY_S = (90.0, 300.0)
SIZES = (GB // 10, GB, 4 * GB, 16 * GB)
RATES = (50e6, 250e6)
LINES = ("steady", "halving", "dying")
TRAININGS = ((0.2, 0, 0.0), (2.0, 0, 0.0), (15.0, 0, 0.0), (0.5, 200, 60.0), (2.0, 30, 200.0))
"""Seconds per step; steps between evaluations and how long they take."""
LEADS: tuple[float | None, ...] = (120.0, 108.0, 30.0, 5.0, 0.0, None)
UNKNOWN_S = (2.0, 40.0, 120.0)
"""What is left in truth when the notice does not say."""


def grid(*, sizes: Sequence[int] = SIZES, rates: Sequence[float] = RATES, moments: int = 2) -> Iterator[Case]:
    """Every combination, each at so many moments between two periodic snapshots."""
    for size, rate, kind, training, lead in itertools.product(sizes, rates, LINES, TRAININGS, LEADS):
        lefts = UNKNOWN_S if lead is None else (lead,)
        for number, (left, every) in enumerate(itertools.product(lefts, EVERY_S[:moments])):
            notice_at = 1.3 * every + 37.3 * number + 0.11 * (size % 97)
            line = _line(kind, rate, notice_at=notice_at, left_s=left)
            yield _case(size, line, training, every_s=every, notice_at=notice_at, lead_s=lead, left_s=left)


def traces(seed: int, count: int) -> Iterator[Case]:
    """Random ones."""
    chance = random.Random(seed)
    for _ in range(count):
        size = int(10 ** chance.uniform(7.5, 10.3))
        lead = chance.choice((120.0, 120.0, 118.0, 108.0, 60.0, 30.0, 5.0, 0.0, None))
        left = chance.uniform(1.0, 120.0) if lead is None else lead
        every = chance.choice((30.0, 90.0, 300.0))
        notice_at = every * chance.uniform(1.0, 2.5)
        step = 10 ** chance.uniform(-1.0, 1.3)
        training = (step, chance.choice((0, 0, 30, 200)), chance.uniform(5.0, 240.0))
        line = _walk(chance, notice_at)
        yield _case(size, line, training, every_s=every, notice_at=notice_at, lead_s=lead, left_s=left)


def _case(size: int, line: Line, training: tuple[float, int, float], *, left_s: float, **timing: Any) -> Case:
    step_s, evaluate_steps, evaluate_s = training
    return Case(
        size_bytes=size,
        line=line,
        step_s=step_s,
        evaluate_steps=evaluate_steps,
        evaluate_s=evaluate_s,
        gone_at=timing["notice_at"] + left_s,
        **timing,
    )


def _line(kind: str, rate: float, *, notice_at: float, left_s: float) -> Line:
    turn = notice_at + 0.4 * left_s
    if kind == "halving":
        return Line((0.0, turn), (rate, rate / 2))
    if kind == "dying":
        return Line((0.0, turn, turn + 5.0, turn + 10.0), (rate, rate / 2, rate / 8, 0.0))
    return Line((0.0,), (rate,))


def _walk(chance: random.Random, notice_at: float) -> Line:
    """A rate that wanders, and now and then halves or dies around the notice."""
    rate = 10 ** chance.uniform(7.0, 8.9)
    moments, rates = [0.0], [rate]
    restless = chance.uniform(0.0, 0.3)
    while moments[-1] < notice_at + 130.0:
        moments.append(moments[-1] + chance.uniform(1.0, 15.0))
        rates.append(rate * chance.lognormvariate(0.0, restless))
    fate, turn = chance.choice(("steady", "steady", "halving", "dying")), notice_at + chance.uniform(-10.0, 120.0)
    share = {"steady": 1.0, "halving": 0.5, "dying": 0.0}[fate]
    return Line(moments, [rate * (share if at >= turn else 1.0) for at, rate in zip(moments, rates, strict=True)])


def losers(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those in which saving at once had committed more."""
    return [one for one in outcomes if one.committed[PLANNER] < one.committed[AT_ONCE]]


def ratio(outcomes: Sequence[Outcome]) -> float:
    """Mean loss of the planner to that of the oracle, in steps or in seconds, whichever is worse."""

    def lost(strategy: str, kind: Callable[[Outcome, str], float]) -> float:
        return sum(kind(one, strategy) for one in outcomes)

    return max(lost(PLANNER, kind) / lost(ORACLE, kind) for kind in (Outcome.lost_steps, Outcome.lost_s))


def table(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Mean losses in steps (and seconds of training), by what the notice says is left."""
    leads = sorted({one.case.lead_s for one in outcomes}, key=lambda lead: -1.0 if lead is None else -lead)
    groups = [("all", list(outcomes))]
    groups += [(_named(lead), [one for one in outcomes if one.case.lead_s == lead]) for lead in leads]
    return [f"{f'{name}: steps (s) lost':<27}" + "".join(f"{what:>18}" for what in STRATEGIES)] + [
        f"{what:>14}, {len(found):5} cases" + "".join(f"{_mean(found, strategy):>18}" for strategy in STRATEGIES)
        for what, found in groups
    ]


def _named(lead: float | None) -> str:
    return "unknown" if lead is None else f"{lead:g} s"


def _mean(outcomes: Sequence[Outcome], strategy: str) -> str:
    steps = statistics.mean(one.lost_steps(strategy) for one in outcomes)
    return f"{steps:.1f} ({statistics.mean(one.lost_s(strategy) for one in outcomes):.1f})"
