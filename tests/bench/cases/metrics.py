"""What a point of the metric history costs the loop that logs it, and the memory that keeps it."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

import spotckpt
from spotckpt import Run
from tests.bench.bench import Bench, Found, Row
from tests.bench.measure import Sample, interleaved

_POINTS = 1_000_000
_QUICK_POINTS = 100_000


def logging(bench: Bench) -> Found:
    """`run.log` of one value and of four, beside what a program can do at least: append to three lists."""
    points = _QUICK_POINTS if bench.quick else _POINTS

    def one_by_one() -> None:
        with plain_run() as run:
            for _ in itertools.repeat(None, points):
                run.log("train", loss=0.5)
                run._step += 1  # a boundary, without what else belongs to one

    def four_at_once() -> None:
        with plain_run() as run:
            for _ in itertools.repeat(None, points // 4):
                run.log("train", loss=0.5, top1=0.25, lr=0.1, grad=2.0)
                run._step += 1

    def lists() -> None:
        steps, epochs, values = list[int](), list[int](), list[float]()
        for step in range(points):
            steps.append(step)
            epochs.append(0)
            values.append(0.5)

    series = interleaved(
        {
            "run.log, one value": _timed(one_by_one),
            "run.log, four values": _timed(four_at_once),
            "lists": _timed(lists),
        },
        bench.repeats,
    )
    rows = [Row("metrics", f"{what}, {points:,} points", samples) for what, samples in series.items()]
    slowest = max(series["run.log, one value"].wall.median, series["run.log, four values"].wall.median)
    return Found(rows, {"log": slowest / points * 1e6, "log-memory": _bytes_a_point(points)})


@contextlib.contextmanager
def plain_run() -> Iterator[Run]:
    """One that saves nothing."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.setenv("SPOTCKPT_DISABLED", "1")
        with spotckpt.open_run() as run:
            yield run


def _timed(act: Callable[[], None]) -> Callable[[], Sample]:
    def timed() -> Sample:
        gc.collect()
        started = time.process_time()  # what else the machine does is no cost of ours
        act()
        return Sample(time.process_time() - started)

    return timed


def _bytes_a_point(points: int) -> float:
    """Of memory that Python allocates; the first point, which makes the metric known, not counted."""
    with plain_run() as run:
        run.log("train", loss=0.5)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in itertools.repeat(None, points):
            run._step += 1
            run.log("train", loss=0.5)
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    return taken / points
