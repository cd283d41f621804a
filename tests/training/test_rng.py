from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from spotckpt.training.rng import capture_generator, capture_rng, restore_generator, restore_rng
from tests.training.lives import draws, seed
from tests.training.roundtrip import value_through_bytes


def all_draws() -> list[float]:
    # Normal draws keep a second value back for the next call, in each of the three.
    return [*draws(), random.gauss(0, 1), float(np.random.normal()), torch.randn(1).item()]


def test_every_global_generator_goes_on_as_it_would_have() -> None:
    seed(3)
    all_draws()
    state = value_through_bytes(capture_rng())
    expected = [all_draws() for _ in range(3)]
    seed(99)
    restore_rng(state, pytest.fail)
    assert [all_draws() for _ in range(3)] == expected


def test_a_captured_state_does_not_move() -> None:
    seed(3)
    state = capture_rng()
    expected = [all_draws() for _ in range(700)]
    restore_rng(state, pytest.fail)
    assert [all_draws() for _ in range(700)] == expected


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_numpy_generators_of_every_kind(bits: Callable[[int], np.random.BitGenerator]) -> None:
    generator = np.random.Generator(bits(1))
    generator.integers(0, 9, 3, dtype=np.uint32)
    state = value_through_bytes(capture_generator(generator))
    expected = [generator.random(), int(generator.integers(0, 100, dtype=np.uint32))]
    other = np.random.Generator(bits(2))
    restore_generator(other, state)
    assert [other.random(), int(other.integers(0, 100, dtype=np.uint32))] == expected


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda number: torch.Generator().manual_seed(number), lambda one: torch.rand(3, generator=one).tolist()),
        (np.random.RandomState, lambda one: [one.normal(), one.random()]),
        (random.Random, lambda one: [one.gauss(0, 1), one.random()]),
    ],
    ids=["torch", "numpy legacy", "python"],
)
def test_generator_objects(make: Callable[[int], object], draw: Callable[[object], list[float]]) -> None:
    generator, other = make(1), make(2)
    draw(generator)
    state = value_through_bytes(capture_generator(generator))
    expected = draw(generator)
    restore_generator(other, state)
    assert draw(other) == expected


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="python generator does not fit a torch one"):
        restore_generator(torch.Generator(), capture_generator(random.Random(1)))


def test_devices_that_are_not_here_are_said_and_left_out() -> None:
    said: list[str] = []
    state = {**capture_rng(), "cuda": [np.zeros(16, np.uint8)] * (torch.cuda.device_count() + 1)}
    restore_rng(state, said.append)
    assert len(said) == 1
    assert "CUDA" in said[0]
