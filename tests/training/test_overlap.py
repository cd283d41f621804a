"""A copy that goes on while the training does: never torn, never sealed when something else changed the weights."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spotckpt.errors import SpoolError
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.pack import layout
from spotckpt.training.capture import Capture, capture
from spotckpt.training.cores import cores
from spotckpt.training.staging import Facts, Stager, Torn
from tests.support.staging_area import StagingArea
from tests.training.copied import copy_into

WIDTH = 512


@pytest.fixture
def area(tmp_path: Path) -> StagingArea:
    return StagingArea(tmp_path / "spool", tmp_path / "disk")


class Training:
    """A model whose state is large enough to be caught in the middle of its copy."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.rate = torch.tensor(1e-3)
        self.optimizer = make(
            self.model.parameters(), lr=self.rate if options.get("foreach") is False else 1e-3, **options
        )
        self.average = [one.detach().clone() for one in self.model.parameters()]
        self.step()

    def step(self) -> None:
        loss = self.model(torch.randn(4, WIDTH)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for mean, one in zip(self.average, self.model.parameters(), strict=True):
            mean.lerp_(one.detach(), 0.1)

    def capture(self) -> Capture:
        return capture({"model": self.model, "optimizer": self.optimizer, "average": self.average}, {"step": 1})

    def bytes_now(self) -> bytes:
        """What a copy with the training paused makes of the state."""
        captured = self.capture()
        plan = layout(captured.specs)
        data = bytearray(plan.data_bytes)
        copy_into(captured, memoryview(data), plan)
        return bytes(data)


class Held(list[Any]):
    """Tensors that the copying thread does not get to see until it is told to go."""

    def __init__(self, tensors: list[Any]) -> None:
        super().__init__(tensors)
        self.go = threading.Event()

    def __getitem__(self, row: Any) -> Any:
        if threading.current_thread().name == "spotckpt-copy":
            assert self.go.wait(60)
        return super().__getitem__(row)


def begin(training: Training, area: StagingArea, *, overlap: bool | None = True) -> tuple[Stager, threading.Event]:
    """Stages; the copy begins when the event is set."""
    captured = training.capture()
    captured.tensors = held = Held(captured.tensors)
    stager = Stager(area, overlap)  # type: ignore[arg-type]  # all that it needs of a session
    stager.stage(captured, Facts(1, 0), History(), reason="periodic", optimizers=[training.optimizer])
    return stager, held.go


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    "options",
    [
        {"make": torch.optim.AdamW, "foreach": True},
        {"make": torch.optim.AdamW, "foreach": False},
        {"make": torch.optim.AdamW, "fused": True},
        {"make": torch.optim.SGD, "momentum": 0.9},
    ],
    ids=["foreach", "rate as a tensor", "fused", "sgd"],
)
def test_steps_while_it_is_copied_change_nothing_of_the_snapshot(area: StagingArea, options: dict[str, Any]) -> None:
    training = Training(**options)
    paused = training.bytes_now()
    stager, go = begin(training, area)
    threading.Timer(0.2, go.set).start()
    for _ in range(3):
        training.step()  # the first one waits
        assert go.is_set()
        training.rate.mul_(0.9)
    stager.settle()
    found = area.newest()
    assert found is not None
    assert found[1] == paused
    assert training.bytes_now() != paused
    stager.close()


def _in_place(training: Training) -> None:
    with torch.no_grad():
        training.model[2].weight.add_(1)


def _in_the_middle(training: Training) -> None:
    with torch.no_grad():
        training.model[2].weight[WIDTH // 2, 0] += 1


def _behind_the_back(training: Training) -> None:
    training.model[2].weight.data.add_(1)


def _swap(training: Training) -> None:
    """The weights of an average, for an evaluation, as many programs do it."""
    for one, mean in zip(training.model.parameters(), training.average, strict=True):
        one.data.copy_(mean)


@pytest.mark.parametrize("change", [_in_place, _in_the_middle, _behind_the_back, _swap])
def test_a_torn_copy_is_not_sealed(area: StagingArea, change: Callable[[Training], None]) -> None:
    training = Training()
    stager, go = begin(training, area)
    change(training)
    go.set()
    with pytest.raises(Torn, match="a0001-n000000-"):
        stager.settle()
    assert area.newest() is None
    assert area.states() == ["free"]
    assert not stager.under_way
    paused = training.bytes_now()
    stager.stage(training.capture(), Facts(2, 0), History(), reason="periodic")
    found = area.newest()
    assert found is not None and found[1] == paused
    stager.close()


def test_what_no_optimizer_owns_is_copied_at_the_boundary(area: StagingArea) -> None:
    training = Training()
    paused = training.bytes_now()
    stager, go = begin(training, area)
    training.model(torch.randn(4, WIDTH))  # moves the buffers of the batch norm
    for mean in training.average:
        mean.zero_()
    go.set()
    stager.settle()
    found = area.newest()
    assert found is not None and found[1] == paused


def test_a_fault_of_the_copying_thread_reaches_the_loop(area: StagingArea) -> None:
    training = Training()
    stager, go = begin(training, area)
    shutil.rmtree(area.run.path)
    go.set()
    training.step()  # not here: a step is not ours to break
    with pytest.raises(SpoolError, match="cannot be sealed"):
        stager.settle()
    assert not stager.under_way
    assert area.newest() is None


def test_ctrl_c_while_a_step_waits_changes_nothing_and_the_copy_is_sealed(area: StagingArea) -> None:
    training = Training()
    paused = training.bytes_now()
    stager, go = begin(training, area)
    interrupt = threading.Timer(0.2, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        interrupt.start()
        training.optimizer.step()
    assert stager.under_way
    go.set()
    stager.settle()
    found = area.newest()
    assert found is not None and found[1] == paused == training.bytes_now()


def test_closing_gives_a_copy_up_and_leaves_no_thread(area: StagingArea) -> None:
    training = Training()
    stager, go = begin(training, area)
    threading.Timer(0.2, go.set).start()
    stager.close()
    assert "spotckpt-copy" not in [thread.name for thread in threading.enumerate()]
    assert "staging" not in area.states()
    training.step()
    assert training.optimizer._optimizer_step_pre_hooks == {}


def test_by_default_a_busy_cpu_copies_before_the_training_goes_on(area: StagingArea) -> None:
    training = Training()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(cores())
        stager, _ = begin(training, area, overlap=None)
        assert not stager.under_way
        assert area.newest() is not None
    finally:
        torch.set_num_threads(threads)
    assert not begin(training, area, overlap=False)[0].under_way


def test_cores_are_those_of_the_affinity_and_of_every_quota(tmp_path: Path) -> None:
    for path, files in {
        "a/b": {"cpu.max": "max 100000"},
        "a": {"cpu.max": "150000 100000"},
        "cpu/c": {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"},
        "cpu/d": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
    }.items():
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / path / name).write_text(text)
    everything = cores("", tmp_path)
    assert cores("0::/a/b", tmp_path) == 1
    assert cores("4:cpu,cpuacct:/c", tmp_path) == 1
    assert cores("4:cpu:/d\n5:memory:/c", tmp_path) == everything
    assert cores("0::/gone", tmp_path) == everything
