"""Runs to be drawn, told in a few words; no bucket, no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spotckpt.curves.chart import Subject, Track
from spotckpt.curves.course import Line
from spotckpt.snapshot.keys import SnapshotId
from tests.curves.test_course import Told


class Columns(Sequence[float]):
    """A series as the reader of a history gives it."""

    is_scalar = True

    def __init__(self, steps: Any, values: Any, *, per_epoch: int = 0) -> None:
        self._steps, self._values = np.asarray(steps, np.int64), np.asarray(values, np.float64)
        self._epochs = self._steps // per_epoch if per_epoch else np.full(len(self._steps), -1)

    def columns(self) -> tuple[Any, Any, Any]:
        return self._steps, self._epochs, self._values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]


def history(**metrics: Any) -> Any:
    """`history(train__loss=Columns(...))`."""
    found: dict[str, dict[str, Any]] = {}
    for key, series in metrics.items():
        set_, _, name = key.partition("__")
        found.setdefault(set_, {})[name] = series
    return found


def curves(steps: int, *, lr: float = 1.0, seed: int = 0, every: int = 100) -> Mapping[str, Any]:
    """A loss at each step, and a validation at every hundredth."""
    noise = np.random.default_rng(seed)
    at = np.arange(steps)
    loss = 2.5 * np.exp(-at * lr / 400) + 0.3 + 0.15 * noise.standard_normal(steps) * np.exp(-at / 900)
    tested = np.arange(every, steps + 1, every)
    top1 = 0.93 - 0.8 * np.exp(-tested * lr / 350) + 0.01 * noise.standard_normal(len(tested))
    held = 2.4 * np.exp(-tested * lr / 380) + 0.42 + tested * 1e-4
    return history(
        train__loss=Columns(at, loss, per_epoch=every),
        valid__loss=Columns(tested, held, per_epoch=every),
        valid__top1=Columns(tested, top1, per_epoch=every),
    )


def eventful() -> Told:
    """Interrupted in every way, and gone back to once."""
    told = Told()
    first = told.attempt(1, 100, 200, 300, reached=341, ended="spot notice (terminate)")
    second = told.attempt(2, 400, 500, base=first[2], reached=560)
    third = told.attempt(3, 600, 700, base=second[1], ended="ZeroDivisionError")
    told.attempt(4, 900, base=third[1], ended="Ctrl-C")
    told.attempt(5, 600, 700, 800, base=second[1], selector="step=500", consumed=("step=500",), ended=None, reached=830)
    told.attempt(6, 900, 1000, base=SnapshotId.parse(str(sorted(told.snapshots)[-1])), ended="SIGTERM", reached=1012)
    return told


def subject(uri: str, lines: Sequence[Line], *histories: Any, **fork: Any) -> Subject:
    return Subject(uri, tuple(Track(*one) for one in zip(lines, histories, strict=True)), **fork)


def plain(uri: str, metrics: Any, *steps: int) -> Subject:
    """One attempt, with these snapshots."""
    told = Told()
    told.attempt(1, *(steps or (10,)), ended="finished")
    return subject(uri, told.lines(), metrics)


def eventful_subject(uri: str = "s3://bucket/resnet50") -> Subject:
    lines = eventful().lines()
    return subject(uri, lines, curves(1012), *[curves(900, lr=0.6, seed=4)] * (len(lines) - 1))
