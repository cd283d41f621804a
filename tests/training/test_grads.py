from __future__ import annotations

from typing import Any

import pytest
import torch

from spotckpt.errors import MismatchError
from spotckpt.training.grads import GradWatch, restore_gradients
from tests.training.roundtrip import value_through_bytes


def make(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer, GradWatch]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watch = GradWatch()
    watch.watch("optimizer", optimizer)
    return model, optimizer, watch


def backward(model: torch.nn.Module, number: int = 1) -> None:
    model(torch.full((2, 3), float(number))).sum().backward()


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()


def test_consumed_gradients_are_left_out() -> None:
    model, optimizer, watch = make()
    train(model, optimizer)
    assert watch.unconsumed() == {}
    assert watch.steps_taken == 2


def test_gradients_of_an_open_window_are_saved() -> None:
    model, optimizer, watch = make()
    assert watch.unconsumed() == {}
    backward(model)
    assert set(watch.unconsumed()["optimizer"]) == {0, 1, 2, 3}
    train(model, optimizer)
    backward(model, 2)  # on top of what the step has used: the same tensor, one version later
    assert set(watch.unconsumed()["optimizer"]) == {0, 1, 2, 3}


def test_a_new_gradient_at_an_old_address_is_not_taken_for_the_old_one() -> None:
    model, optimizer, watch = make()
    train(model, optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        backward(model)
        assert set(watch.unconsumed()["optimizer"]) == {0, 1, 2, 3}
        optimizer.step()
        assert watch.unconsumed() == {}


@pytest.mark.parametrize(
    "zero", [lambda one: one.zero_grad(set_to_none=False), lambda one: None], ids=["zero", "never"]
)
def test_gradient_tensors_that_outlive_steps_are_saved(zero: Any) -> None:
    model, optimizer, watch = make()
    for _ in range(4):
        zero(optimizer)
        backward(model)
        optimizer.step()
        assert set(watch.unconsumed()["optimizer"]) == {0, 1, 2, 3}


def test_a_step_skipped_for_overflow_consumes_nothing() -> None:
    model, optimizer, watch = make()
    train(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer.zero_grad()
    scaler.scale(model(torch.full((2, 3), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert watch.steps_taken == 2
    assert len(watch.unconsumed()["optimizer"]) == 4


def test_two_optimizers_are_told_apart() -> None:
    model, optimizer, watch = make()
    other_model, other, _ = make(1)
    watch.watch("other", other)
    train(model, optimizer)
    backward(other_model)
    assert list(watch.unconsumed()) == ["other"]
    train(other_model, other)
    assert watch.steps_taken == 4


def test_closing_removes_the_hooks_and_keeps_the_count() -> None:
    model, optimizer, watch = make()
    train(model, optimizer)
    watch.close()
    train(model, optimizer)
    assert watch.steps_taken == 2


@pytest.mark.parametrize("boundary", range(1, 9))
def test_accumulation_over_four_batches_loses_nothing(boundary: int) -> None:
    """Cut after each of eight batches; the rest gives the weights of the loop without a cut."""

    def batches(model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for batch in range(first, last):
            backward(model, batch)
            if batch % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()

    expected, optimizer, _ = make()
    batches(expected, optimizer, 0, 12)
    model, optimizer, watch = make()
    batches(model, optimizer, 0, boundary)
    saved = value_through_bytes([model.state_dict(), optimizer.state_dict(), watch.unconsumed()])
    model, optimizer, _ = make(1)
    optimizer.load_state_dict(saved[1])
    model.load_state_dict(saved[0])
    for name, gradients in saved[2].items():
        restore_gradients(name, optimizer, gradients)
    batches(model, optimizer, boundary, 12)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradients_that_do_not_fit_are_refused() -> None:
    model, _, watch = make()
    backward(model)
    gradients = watch.unconsumed()["optimizer"]
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    with pytest.raises(MismatchError, match="parameter 0"):
        restore_gradients("optimizer", other, gradients)
    with pytest.raises(MismatchError, match="parameter 3"):
        restore_gradients("optimizer", other, {3: gradients[3]})
