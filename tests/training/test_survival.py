"""What a training survives that was staged once: a spool, memory, descriptors or threads that are used up later."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from spotckpt.config import Every, Settings
from spotckpt.errors import SpoolError
from spotckpt.snapshot.metrics import History
from spotckpt.training.capture import Capture, capture
from spotckpt.training.saver import Saver, collector_resting
from spotckpt.training.schedule import Evaluation
from spotckpt.training.staging import LEAST_ROOM_BYTES, Facts
from tests.agent.test_room import limited
from tests.support.mounts import tmpfs
from tests.support.staging_area import StagingArea


class Training:
    """A state of 24 MiB, saved at every boundary."""

    def __init__(self, area: StagingArea, *, overlap: bool = False) -> None:
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3 << 20))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9)
        self.weight.grad = torch.ones_like(self.weight)
        self.step = 0
        self.logged = History()
        self.fails: Exception | None = None
        settings = Settings(every=Every(steps=1), overlap=overlap)
        self.saver = Saver(area, settings, self, Evaluation(None))  # type: ignore[arg-type]  # what it needs of a session
        self.area = area

    def capture(self) -> Capture:
        if self.fails is not None:
            raise self.fails
        return capture({"weight": self.weight, "optimizer": self.optimizer}, {"step": self.step})

    def facts(self) -> Facts:
        return Facts(self.step, 0)

    @property
    def metrics(self) -> History:
        return self.logged

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer]

    def train(self, steps: int = 1) -> None:
        """Steps and boundaries; a pause after a failure is over at once."""
        for _ in range(steps):
            self.optimizer.step()
            self.step += 1
            self.saver._pause = None
            self.saver.point()

    def sealed_step(self) -> int:
        found = self.area.newest()
        return -1 if found is None else found[0].step


@pytest.fixture
def area(tmp_path: Path) -> StagingArea:
    return StagingArea(tmp_path / "spool", tmp_path / "disk")


def memory_in_use() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextmanager
def descriptors_used_up() -> Iterator[None]:
    taken: list[int] = []
    gc.collect()  # mappings of earlier tests hold some
    with limited(resource.RLIMIT_NOFILE, 256):
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            yield
        finally:
            for number in taken:
                os.close(number)


@pytest.mark.fault(26)
def test_without_address_space_for_another_slot_the_training_goes_on(
    area: StagingArea, capfd: pytest.CaptureFixture[str]
) -> None:
    training = Training(area)
    training.train()
    assert training.sealed_step() == 1
    with limited(resource.RLIMIT_AS, memory_in_use() + (16 << 20)):
        training.train(2)
    assert training.sealed_step() == 1
    said = capfd.readouterr().err
    assert said.count("Cannot allocate memory; do not clean") == 1, said
    assert "training goes on without this snapshot" in said
    training.train()
    assert training.sealed_step() == 4
    training.saver._stager.close()


@pytest.mark.fault(26)
def test_a_memory_error_while_staging_costs_a_snapshot_and_not_the_training(
    area: StagingArea, capfd: pytest.CaptureFixture[str]
) -> None:
    training = Training(area)
    training.fails = MemoryError("no memory for the state")
    training.train(2)
    training.fails = None
    training.train()
    assert training.sealed_step() == 3
    assert capfd.readouterr().err.count("no memory for the state") == 1


@pytest.mark.fault(84)
@pytest.mark.parametrize("overlap", [False, True])
def test_without_descriptors_the_training_goes_on(
    area: StagingArea, overlap: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    training = Training(area, overlap=overlap)
    area.prepare((24 << 20) + LEAST_ROOM_BYTES)
    training.train()
    training.saver._settle()
    with descriptors_used_up():
        training.train(2)
        training.saver._settle()
    assert training.sealed_step() == 1
    assert "Too many open files" in capfd.readouterr().err
    training.train()
    training.saver._settle()
    assert training.sealed_step() == 4
    training.saver._stager.close()


@pytest.mark.fault(84)
def test_without_another_thread_it_is_copied_before_the_training_goes_on(area: StagingArea) -> None:
    training = Training(area, overlap=True)
    area.prepare((24 << 20) + LEAST_ROOM_BYTES)
    for _ in range(3):
        training.train()
        training.saver._settle()
    before = threading.stack_size(256 << 20)
    try:
        with limited(resource.RLIMIT_AS, memory_in_use() + (64 << 20)):
            training.train()
            assert not training.saver._stager.under_way
    finally:
        threading.stack_size(before)
    assert training.sealed_step() == 4
    training.saver._stager.close()


@pytest.mark.fault(23)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_spool_that_is_cleaned_away_costs_snapshots_and_not_the_training(
    area: StagingArea, overlap: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    training = Training(area, overlap=overlap)
    training.train(2)
    training.saver._settle()
    shutil.rmtree(area.run.path)
    training.train(3)
    training.saver._settle()
    assert training.sealed_step() >= 4
    training.saver._stager.close()


@pytest.mark.fault(14)
def test_a_state_that_never_had_room_ends_the_training_at_once(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=10m") as small:
        training = Training(StagingArea(small / "spool", small / "disk"))
        with pytest.raises(SpoolError, match="no room to stage"):
            training.train()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_afterwards_as_it_was(enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with suppress(ValueError), collector_resting():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
