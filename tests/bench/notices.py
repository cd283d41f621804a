"""The cases in which notices are replayed: a grid, and random traces that nothing was tuned on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from tests.bench.interruptions import Case, Line

GB = 10**9
SIZES = (GB // 10, GB, 4 * GB, 16 * GB)
RATES = (50e6, 250e6)
LINES = ("steady", "halving", "dying")
TRAININGS = ((0.2, 0, 0.0), (2.0, 0, 0.0), (15.0, 0, 0.0), (0.5, 200, 60.0), (2.0, 30, 200.0))
"""Seconds per step; steps between evaluations and how long they take."""
LEADS: tuple[float | None, ...] = (120.0, 108.0, 30.0, 5.0, 0.0, None)
UNKNOWN_S = (2.0, 40.0, 120.0)
"""What is left in truth when the notice does not say."""


def grid(*, sizes: Sequence[int] = SIZES, rates: Sequence[float] = RATES, moments: int = 2) -> Iterator[Case]:
    """Every combination."""
    for size, rate, kind, training, lead in itertools.product(sizes, rates, LINES, TRAININGS, LEADS):
        for moment, (left, every) in enumerate(
            itertools.product((lead,) if lead is not None else UNKNOWN_S, (90.0, 300.0))
        ):
            if moment >= moments and lead is not None:
                break
            notice_at = 1.3 * every + 37.3 * moment + 0.11 * (size % 97)
            line = _line(kind, rate, notice_at=notice_at, left_s=left or 0.0)
            yield _case(size, line, training, every_s=every, notice_at=notice_at, lead_s=lead, left_s=left or 0.0)


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
