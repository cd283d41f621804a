"""A run without a bucket: the loops, the metrics and the values behave the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import spotckpt
from spotckpt.address import Metric
from spotckpt.config import Every
from spotckpt.errors import EncodeError, UsageError
from spotckpt.training.schedule import Evaluation, Schedule
from spotckpt.training.vars import Vars


@pytest.fixture(autouse=True)
def disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTCKPT_DISABLED", "1")


def test_loops_run_plainly_and_count_boundaries() -> None:
    seen = []
    with spotckpt.open_run() as run:
        for epoch in run.epochs(2):
            batches = run.batches([10, 20, 30])
            assert len(batches) == 3
            for x in batches:
                seen.append((epoch, run.epoch, run.batch, run.step, x))
        assert run.resumed_from is None
    assert seen == [(e, e, b, 3 * e + b, 10 * b + 10) for e in range(2) for b in range(3)]


def test_a_run_without_epochs_is_in_none() -> None:
    with spotckpt.open_run() as run:
        for _ in run.steps(2):
            assert run.facts().epoch == -1
        for epoch in run.epochs(2):
            assert run.facts().epoch == epoch
        assert run.facts().epoch == 2


@pytest.mark.parametrize("number", [-1, 1.5, "3", None])
def test_numbers_of_epochs_and_steps_are_checked_at_the_call(number: Any) -> None:
    with spotckpt.open_run() as run:
        for loop in (run.epochs, run.steps):
            with pytest.raises(UsageError, match=r"that is no number of (epochs|steps)"):
                loop(number)
        assert list(run.epochs(0)) == list(run.steps(np.int64(0))) == []


def test_a_loader_without_batches_is_remarked_once(capfd: pytest.CaptureFixture[str]) -> None:
    with spotckpt.open_run() as run:
        for _epoch in run.epochs(3):
            list(run.batches([]))
            list(run.batches([1]))
    assert capfd.readouterr().err.count("a loader without a single batch") == 1


def test_own_loops_count_their_boundaries() -> None:
    with spotckpt.open_run() as run:
        while run.step < 5:
            run.boundary()
        assert list(run.steps(3)) == [0, 1, 2]
        assert run.step == 8


def test_an_iteration_left_by_break_is_a_step_too() -> None:
    with spotckpt.open_run() as run:
        for _epoch in run.epochs(2):
            for x in run.batches([0, 1, 2]):
                if x == 1:
                    break
        assert run.step == 4


def test_after_finish_no_loop_goes_on() -> None:
    bodies = []
    with spotckpt.open_run() as run:
        for _epoch in run.epochs(5):
            for x in run.batches([0, 1, 2]):
                bodies.append(x)
                if run.step == 4:
                    run.finish()
        assert bodies == [0, 1, 2, 0, 1]
        assert run.step == 5
        assert list(run.epochs(9)) == list(run.batches([1])) == list(run.steps(9)) == []


def test_metrics_are_kept_by_set_name_step_and_epoch() -> None:
    with spotckpt.open_run() as run:
        losses = run.history["train"]["loss"]
        assert list(losses) == [] and "train" not in run.history
        for epoch in run.epochs(2):
            for x in run.batches([1.0, 3.0]):
                run.log("train", loss=torch.tensor(x + epoch))
            assert run.mean("train", "loss") == 2.0 + epoch
            run.log("valid", top1=float(epoch))
        assert losses == [1.0, 3.0, 2.0, 4.0]
        assert losses.steps == [0, 1, 2, 3] and losses.epochs == [0, 0, 1, 1]
        assert run.mean("train", "loss", epoch=0) == 2.0
        best = run.best("valid", "top1")
        assert best is not None and (best.value, best.epoch) == (1.0, 1)
        assert run.best("valid", "nothing") is None
        assert {name: list(curves) for name, curves in run.history.items()} == {"train": ["loss"], "valid": ["top1"]}


def test_what_is_asked_of_the_history_is_checked() -> None:
    with spotckpt.open_run() as run:
        for _ in run.steps(4):
            run.log("valid", loss=float(run.step))
        for ask in (run.best, run.improved):
            with pytest.raises(UsageError, match="mode='minimum' is not known"):
                ask("valid", "loss", "minimum")  # type: ignore[operator]
        for number in (0, -1, "3", 1.5):
            with pytest.raises(UsageError, match="is no count"):
                run.best("valid", "loss", k=number)  # type: ignore[call-overload]
            with pytest.raises(UsageError, match="is no count"):
                run.improved("valid", "loss", patience=number)  # type: ignore[arg-type]
        assert [one.step for one in run.best("valid", "loss", "min", k=np.int64(2))] == [0, 1]
        assert not run.improved("valid", "loss", patience=np.int64(2))
        with pytest.raises(UsageError, match="metric 3 / 'loss'"):
            run.log(3, loss=1.0)  # type: ignore[arg-type]


def test_values_are_checked_where_they_are_assigned() -> None:
    with spotckpt.open_run() as run:
        run.vars["ok"] = {"names": ["a", "b"], 3: torch.zeros(2)}
        with pytest.raises(EncodeError, match=r"^vars\.tokenizer\['?fn'?\]?|^vars\.tokenizer\.fn"):
            run.vars["tokenizer"] = {"fn": lambda: None}
        with pytest.raises(EncodeError, match="no string"):
            run.vars[3] = 1  # type: ignore[index]
        assert list(run.vars) == ["ok"]


def test_tracking_refuses_what_no_snapshot_can_hold_and_names_twice() -> None:
    model = torch.nn.Linear(2, 2)
    with spotckpt.open_run() as run:
        run.track(model=model)
        with pytest.raises(UsageError, match="model cannot be tracked"):
            run.track(model=model)
        with pytest.raises(UsageError, match=r"given a Linear without a name; .*track\(model=model"):
            run.track(model)
        with pytest.raises(UsageError, match="vars cannot be tracked"):
            run.track(vars={})
        with pytest.raises(UsageError, match="track: optimzer is not tracked"):
            run.track(optimizer=torch.optim.SGD(model.parameters(), lr=1), override={"optimzer": ["lr"]})
        with pytest.raises(EncodeError, match="settings"):
            run.track(settings={"fn": lambda: None})


def test_override_and_names_are_checked_before_there_is_anything_to_restore() -> None:
    model = torch.nn.Linear(2, 2)
    with spotckpt.open_run() as run:

        def track(**given: object) -> None:
            optimizer = torch.optim.SGD(model.parameters(), lr=1)
            run.track(model=model, optimizer=optimizer, table={"a": 1}, **given)  # type: ignore[arg-type]

        refused = {
            "no such setting": {"override": {"optimizer": ["lrr"]}},
            "table has no 'b'": {"override": {"table": "b"}},
            "does not apply to a module": {"override": {"model": ["weight"]}},
            "is no mapping": {"override": ["lr"]},
            "track: model_ is not tracked": {"optional": "model_"},
            "are no names": {"drop": 3},
            "'gpu:0' is not a device": {"map_location": "gpu:0"},
            "is not a device": {"map_location": {"cuda:0": None}},
        }
        for message, given in refused.items():
            with pytest.raises(UsageError, match=message):
                track(**given)
        track(override={"optimizer": "lr", "table": ["a"]}, optional="optimizer", drop="old")


def test_restored_values_survive_setdefault_and_assigning_them_unread_is_remarked_once() -> None:
    said: list[str] = []
    values = Vars(lambda path, value: None, said.append)
    values.restore({"patience": 3, "best": 0.5, "seen": 9, "late": 2})
    assert values.setdefault("patience", 0) == 3
    values["patience"] = 0
    values["seen"] += 1
    assert said == []
    values["best"] = 0.0
    values["best"] = 1.0
    assert len(said) == 1 and "vars['best'] was restored" in said[0]
    values.settle()
    values["late"] = 1
    assert len(said) == 1


def test_snapshots_are_due_by_steps_or_by_time() -> None:
    now = 100.0
    by_steps = Schedule(Every(steps=3), 10, now=lambda: now)
    assert [by_steps.due(step) for step in (10, 12, 13, 14)] == [False, False, True, True]
    by_steps.restart(13)
    assert not by_steps.due(15)
    by_time = Schedule(Every(seconds=5), 0, now=lambda: now)
    assert not by_time.due(1)
    now = 105.0
    assert by_time.due(1)
    by_time.postpone(1.0)
    assert not by_time.due(2)
    now = 106.0
    assert by_time.due(2)


@pytest.mark.parametrize(("mode", "better", "worse"), [("max", 0.6, 0.4), ("min", 0.4, 0.6)])
def test_only_an_improvement_on_unchanged_weights_asks_for_a_best_snapshot(
    mode: str, better: float, worse: float
) -> None:
    evaluation = Evaluation(Metric.parse(f"valid/top1:{mode}"))
    marks: list[int] = []
    evaluation.weights_at(1, lambda: marks.append(1))
    evaluation.logged(math.nan, None)
    assert not evaluation.improved
    evaluation.logged(0.5, None)
    assert evaluation.improved
    evaluation.weights_at(1, lambda: marks.append(1))
    assert evaluation.improved and marks == [1]
    evaluation.weights_at(2, lambda: marks.append(2))
    assert not evaluation.improved and marks == [1, 2]
    evaluation.logged(worse, 0.5)
    assert not evaluation.improved
    evaluation.logged(better, 0.5)
    assert evaluation.improved
