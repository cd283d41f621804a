"""A training goes on from a file as from the run itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import spotckpt
from spotckpt.adapters.pytorchcheckpoint import CheckpointHandler
from tests.cli.command import in_process
from tests.moving.made import FILES
from tests.moving.old import old_file
from tests.training.machine import Machine, machine


@pytest.fixture(scope="module")
def here() -> Iterator[Machine]:
    with machine() as found:
        yield found


@pytest.fixture
def agent(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process trains itself."""
    here.enter(monkeypatch)


def test_a_training_that_was_moved_in_the_middle_of_an_epoch_ends_the_same(here, tmp_path):
    """Weights, momentum, dropout's generator, the order of the data and the metrics, through all three formats."""
    plain = here.train(None, env={"SPOTCKPT_DISABLED": "1"}).end
    uri = f"file://{tmp_path}/run"
    here.train(uri, "--act=raise", "--at=7", status=1)
    for name in FILES:
        path, other = tmp_path / name, f"file://{tmp_path}/{name}.run"
        assert in_process("pull", uri, str(path)).status == 0
        assert in_process("push", str(path), other).status == 0
        moved = here.train(other)
        assert moved.steps[0] == 7
        assert moved.end == plain


def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(4)
    model = torch.nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss = model(torch.randn(3, 2)).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def resumed(uri: str, loop: str, count: int) -> tuple[list[int], torch.nn.Module]:
    """The epochs or steps that were left, and the model at their end."""
    seen = []
    with spotckpt.open_run(uri, every="1h") as run:
        model, optimizer = build()
        run.track(model=model, optimizer=optimizer)
        for number in run.epochs(count) if loop == "epochs" else run.steps(count):
            seen.append(number)
            step(model, optimizer)
    return seen, model


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize(("loop", "left"), [("epochs", [3, 4]), ("steps", [3, 4])])
def test_a_checkpoint_of_the_adapter_goes_on_as_if_it_were_ours(loop, left, tmp_path):
    """Epochs go on at the epoch, steps at the step, with weights, momentum and generators of the file."""
    model, optimizer = build()
    for _ in range(3):
        step(model, optimizer)
    path, uri = tmp_path / "c.pth.tar", f"file://{tmp_path}/run"
    CheckpointHandler().save_checkpoint(path, 3, model, optimizer)
    for _ in range(2):
        step(model, optimizer)
    done = in_process("push", str(path), uri, *(["--epoch", "3"] if loop == "epochs" else []))
    assert done.status == 0, done.err
    seen, found = resumed(uri, loop, 5)
    assert seen == left
    assert torch.equal(found.weight, model.weight)
    assert resumed(uri, loop, 6)[0] == [5]  # it is a run like any other from there on


@pytest.mark.usefixtures("agent")
def test_a_file_of_the_old_package_goes_on(tmp_path):
    model, optimizer = build()
    states = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    old_file(tmp_path / "c.pth.tar", {"iteration": 25, "train": {"top1": {0: 80}}, **states}, legacy=True)
    uri = f"file://{tmp_path}/run"
    assert in_process("push", str(tmp_path / "c.pth.tar"), uri).status == 0
    with spotckpt.open_run(uri, every="1h") as run:
        other, its_optimizer = build()
        with torch.no_grad():
            other.weight.zero_()
        run.track(model=other, optimizer=its_optimizer)
        assert torch.equal(other.weight, model.weight) and run.step == 25
        assert list(run.history["train"]["top1"]) == [80.0]
        assert list(run.steps(27)) == [25, 26]


@pytest.mark.usefixtures("agent")
def test_a_program_without_our_loops_goes_on_from_a_file(tmp_path):
    """From the first boundary on its generators are part of the snapshots, as those of any other."""
    model, optimizer = build()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "global_step": 9}
    torch.save(states, tmp_path / "c.pt")
    uri = f"file://{tmp_path}/run"
    assert in_process("push", str(tmp_path / "c.pt"), uri).status == 0
    torch.manual_seed(11)
    with pytest.raises(ZeroDivisionError), spotckpt.open_run(uri, every="1 steps") as run:
        run.track(**dict(zip(("model", "optimizer"), build(), strict=True)))
        assert run.step == 9
        torch.manual_seed(12)
        run.boundary()
        expected = torch.rand(1)
        raise ZeroDivisionError
    with spotckpt.open_run(uri, every="1 steps") as run:
        run.track(**dict(zip(("model", "optimizer"), build(), strict=True)))
        assert run.step == 10
        assert torch.rand(1) == expected


def test_the_keys_that_show_prints_are_those_of_the_file(here, tmp_path: Path):
    uri = f"file://{tmp_path}/run"
    here.train(uri, "--epochs=1")
    assert in_process("pull", uri, str(tmp_path / "c.pt")).status == 0
    keys = torch.load(tmp_path / "c.pt", weights_only=True).keys()
    assert f"\n{keys}\n" in in_process("show", uri).out
