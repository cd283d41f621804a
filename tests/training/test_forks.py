"""A fork trains on with another learning rate from its first step, as a plain loop does that was given it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedules

import spotckpt
from spotckpt.errors import MismatchError, UsageError
from spotckpt.snapshot.catalog import read_catalog
from spotckpt.snapshot.fetch import read_manifest
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.open import open_run_store
from tests.cli.command import in_process
from tests.training.machine import Machine

FORKED_AT, BROKEN_AT, STEPS = 13, 19, 26
OLD, NEW = 0.1, 0.01

Make = Callable[[torch.optim.Optimizer, float], Any]
KINDS: Mapping[str, Make] = {
    "none": lambda optimizer, lr: None,
    "lambda": lambda optimizer, lr: schedules.LambdaLR(optimizer, lambda n: 1 / (1 + n)),
    "step": lambda optimizer, lr: schedules.StepLR(optimizer, 5, 0.3),
    "cosine": lambda optimizer, lr: schedules.CosineAnnealingLR(optimizer, 30, eta_min=0.001),
    "onecycle": lambda optimizer, lr: schedules.OneCycleLR(optimizer, max_lr=[7 * lr, lr], total_steps=STEPS + 5),
    "plateau": lambda optimizer, lr: schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=2),
    "sequential": lambda optimizer, lr: schedules.SequentialLR(
        optimizer,
        [schedules.LinearLR(optimizer, 0.1, total_iters=6), schedules.CosineAnnealingLR(optimizer, 30)],
        milestones=[6],
    ),
}
EXACT = ("none", "lambda", "onecycle")
"""Whose learning rate follows from the position by the very arithmetic of a plain loop."""


class Boom(Exception):
    """What ends a training here."""


class Task:
    """A model of two parameter groups, one of which learns more slowly, and a schedule."""

    def __init__(self, kind: str, lr: float) -> None:
        self.kind = kind
        self.model = torch.nn.Linear(3, 2).double()
        weight, bias = self.model.parameters()
        groups = [{"params": [weight]}, {"params": [bias], "lr": lr / 4}]
        self.optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.5)
        self.scheduler = KINDS[kind](self.optimizer, lr)

    @property
    def lrs(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def step(self, x: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        (self.model(x) - x[:, :2].sin()).square().mean().backward()
        self.optimizer.step()
        self.advance()

    def advance(self) -> None:
        if isinstance(self.scheduler, schedules.ReduceLROnPlateau):
            self.scheduler.step(1.0)  # never better
        elif self.scheduler is not None:
            self.scheduler.step()

    def go_on_as(self, other: Task) -> None:
        """From here on with that one's learning rate and schedule, which are as far as ours."""
        for mine, theirs in zip(self.optimizer.param_groups, other.optimizer.param_groups, strict=True):
            mine.update({key: value for key, value in theirs.items() if key != "params"})
        self.scheduler = other.scheduler
        for part in (self.scheduler, *getattr(self.scheduler, "_schedulers", ())):
            if part is not None:
                part.optimizer = self.optimizer


def tasks(lr: float) -> list[Task]:
    torch.manual_seed(0)
    return [Task(kind, lr) for kind in KINDS]


def plain() -> tuple[dict[str, list[list[float]]], dict[str, torch.Tensor]]:
    """Every step's learning rates, and the weights at the end, of a loop without spotckpt."""
    those, shadows = tasks(OLD), tasks(NEW)
    torch.manual_seed(1)
    lrs: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for step in range(STEPS):
        x = torch.randn(8, 3, dtype=torch.float64)
        for task, shadow in zip(those, shadows, strict=True):
            if step == FORKED_AT:
                task.go_on_as(shadow)
            lrs[task.kind].append(task.lrs)
            task.step(x)
            if step < FORKED_AT:
                shadow.optimizer._opt_called = True  # or else torch warns of a schedule that nobody follows
                shadow.advance()
    return lrs, {task.kind: task.model.weight.detach().clone() for task in those}


class Told:
    """What a training used and came to."""

    def __init__(self) -> None:
        self.lrs: dict[str, dict[int, list[float]]] = {kind: {} for kind in KINDS}
        self.weights: dict[str, torch.Tensor] = {}
        self.lr: Any = None


def train(uri: str, told: Told, *, lr: float = OLD, until: int = STEPS, override: bool = False) -> None:
    """One life, that ends by an exception before that step."""

    @spotckpt.resumable(every="1 steps")
    def function(run: spotckpt.Run, lr: float) -> None:
        told.lr = lr
        those = tasks(lr)
        torch.manual_seed(1)
        tracked: dict[str, Any] = {}
        for task in those:
            tracked |= {f"m_{task.kind}": task.model, f"o_{task.kind}": task.optimizer}
            if task.scheduler is not None:
                tracked[f"s_{task.kind}"] = task.scheduler
        run.track(**tracked, override={f"o_{kind}": ["lr", "momentum"] for kind in KINDS} if override else None)
        for step in run.steps(STEPS):
            if step == until:
                raise Boom
            x = torch.randn(8, 3, dtype=torch.float64)
            for task in those:
                told.lrs[task.kind][step] = task.lrs
                task.step(x)
            run.log("train", lr=those[0].lrs[0])
        told.weights = {task.kind: task.model.weight.detach().clone() for task in those}

    if until == STEPS:
        function.at(uri)(lr=lr)
    else:
        with pytest.raises(Boom):
            function.at(uri)(lr=lr)


pytestmark = pytest.mark.usefixtures("on_shared")


@pytest.fixture(scope="module")
def parent(shared: Machine, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"file://{tmp_path_factory.mktemp('parent')}/run"
    with pytest.MonkeyPatch.context() as patch:
        shared.enter(patch)
        train(uri, Told(), until=FORKED_AT)
    return uri


def fork(parent: str, to: str, *options: str) -> str:
    done = in_process("fork", parent, to, *options)
    assert done.status == 0, done.err
    return to


def judge(told: Told) -> None:
    lrs, weights = plain()
    for kind in KINDS:
        used = [told.lrs[kind][step] for step in range(FORKED_AT, STEPS)]
        expected = lrs[kind][FORKED_AT:]
        assert used[0] == pytest.approx(expected[0], rel=1e-14), f"{kind}: the first step after the fork"
        flat = [[lr for step in lrs for lr in step] for lrs in (used, expected)]
        assert flat[0] == pytest.approx(flat[1], rel=1e-12), kind
        assert torch.allclose(told.weights[kind], weights[kind], rtol=1e-12, atol=0), kind
        if kind in EXACT:
            assert used == expected and torch.equal(told.weights[kind], weights[kind]), kind


def test_the_first_step_of_a_fork_has_its_learning_rate_and_later_ones_keep_it(
    parent: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken, whole = Told(), Told()
    uri = fork(parent, f"file://{tmp_path}/broken", "--set", f"lr={NEW}")
    capfd.readouterr()
    train(uri, broken, until=BROKEN_AT)
    said = capfd.readouterr().err
    assert broken.lr == NEW, "the function is given the fork's value in place of its caller's"
    assert f"argument lr is {NEW}, as this fork sets it, in place of {OLD}" in said
    assert f"o_none goes on with group 0 lr {NEW} instead of {OLD}, group 1 lr {NEW / 4} instead of {OLD / 4}" in said
    assert "restored state keeps its values" not in said
    train(uri, broken)
    assert "goes on with" not in capfd.readouterr().err
    train(fork(parent, f"file://{tmp_path}/whole", "--set", f"lr={NEW}"), whole)
    for kind in KINDS:
        assert broken.lrs[kind] == whole.lrs[kind] and torch.equal(broken.weights[kind], whole.weights[kind]), kind
    judge(whole)
    recorded = spotckpt.load(uri, only="o_none")["o_none"]["param_groups"][0]
    assert recorded["lr"] == NEW


def test_override_does_the_same_and_a_later_resume_keeps_it(parent: str, tmp_path: Path) -> None:
    told = Told()
    uri = fork(parent, f"file://{tmp_path}/run")
    train(uri, told, lr=NEW, override=True, until=BROKEN_AT)
    train(uri, told, lr=NEW, override=True)
    judge(told)


def test_a_fork_is_read_as_any_run(parent: str, tmp_path: Path) -> None:
    uri, told = fork(fork(parent, f"file://{tmp_path}/one"), f"file://{tmp_path}/two"), Told()
    weights = spotckpt.load(uri, only="m_none")["m_none"]["weight"]
    assert torch.equal(weights, spotckpt.load(parent, only="m_none")["m_none"]["weight"])
    assert spotckpt.load(f"{uri}@step={FORKED_AT}").keys() == spotckpt.load(parent).keys()
    model = torch.nn.Linear(3, 2).double()
    with pytest.raises(Boom), spotckpt.open_run(f"file://{tmp_path}/three", init_from=uri) as run:
        run.track(m_none=model)
        raise Boom
    assert torch.equal(model.weight, weights)
    segments = {where: list(Path(where.removeprefix("file://")).glob("packs/*/history*")) for where in (uri, parent)}
    assert segments[parent] and not segments[uri], "the history is shared too"
    copied = fork(uri, f"file://{tmp_path}/copied", "--copy")
    assert in_process("diff", copied, parent).status == 0
    assert in_process("diff", uri, parent).out.endswith("1 metrics\n")
    train(uri, told, until=BROKEN_AT)
    with closing(open_run_store(uri)) as store, closing(open_run_store(parent)) as other:
        newest = max(read_catalog(store).snapshots)
        mine = read_history(store, read_manifest(store, newest))["train"]["lr"].columns()
        theirs = read_history(other, read_manifest(other, max(read_catalog(other).snapshots)))["train"]["lr"].columns()
    assert [column[:FORKED_AT].tolist() for column in mine] == [column.tolist() for column in theirs]
    assert mine[0].tolist() == list(range(newest.step)), "no gap, and no point twice"
    assert in_process("status").status == 0


def test_without_either_the_snapshot_s_values_go_on(parent: str, tmp_path: Path) -> None:
    told = Told()
    train(fork(parent, f"file://{tmp_path}/run"), told, lr=NEW, until=FORKED_AT + 1)
    assert told.lrs["none"][FORKED_AT] == [OLD, OLD / 4]


def test_a_fork_that_cannot_be_followed_is_refused(parent: str, tmp_path: Path) -> None:
    uri = fork(parent, f"file://{tmp_path}/run", "--set", f"lr={NEW}")
    with pytest.raises(UsageError, match="sets lr, and the training takes no such argument"), spotckpt.open_run(uri):
        pass

    def deaf(**arguments: Any) -> None:
        with spotckpt.open_run(uri, arguments=arguments) as run:
            those = tasks(OLD)
            names = {"m": "model", "o": "optimizer", "s": "scheduler"}
            tracked = {f"{short}_{one.kind}": getattr(one, name) for one in those for short, name in names.items()}
            run.track(**{name: obj for name, obj in tracked.items() if obj is not None})
            assert run.arguments == {"lr": NEW}
            for _ in run.steps(STEPS):
                raise Boom

    with pytest.raises(MismatchError, match=rf"this fork sets lr={NEW}, and every optimizer is built as it was before"):
        deaf(lr=OLD)
