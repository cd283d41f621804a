"""The harness must notice what it is there for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.bitexact import outcome
from tests.bitexact.harness import Options
from tests.bitexact.outcome import Dump, Outcome, differences
from tests.bitexact.test_matrix import a_trial


def dumped(path: Path, *, loss: float = 0.1, weight: float = 1.0, seen: int = 3) -> Dump:
    """A small outcome, written and read back."""
    model = torch.nn.ParameterDict({"weight": torch.tensor([weight])})
    outcome.write(Outcome({"model": model}, {"train/loss": [0.5, loss]}, {"seen": seen}), path)
    return Dump.read(path)


def test_the_same_outcome_has_no_differences(tmp_path: Path) -> None:
    assert differences(dumped(tmp_path / "a"), dumped(tmp_path / "b")) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"loss": float(np.nextafter(0.1, 1))}, "curves/train/loss/1: plain float 0x1.999999999999ap-4"),
        ({"loss": float("nan")}, "curves/train/loss/1: plain float 0x1.999999999999ap-4, spot float nan"),
        ({"weight": float(np.nextafter(np.float32(1), np.float32(2)))}, "objects/model/weight: 1 of 4 bytes differ"),
        ({"seen": 4}, "values/seen: plain int 3, spot int 4"),
    ],
)
def test_one_bit_is_named(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    found = differences(dumped(tmp_path / "a"), dumped(tmp_path / "b", **change))
    assert len(found) == 1
    assert found[0].startswith(line)


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: torch.rand(1)])
def test_one_number_drawn_is_named(draw: object, tmp_path: Path) -> None:
    before = dumped(tmp_path / "a")
    assert callable(draw)
    draw()
    found = differences(before, dumped(tmp_path / "b"))
    assert found
    assert all(line.startswith("rng/") for line in found)


@pytest.mark.parametrize("generator", ["torch", "numpy", "python"])
def test_a_resume_with_one_generator_ahead_is_noticed(generator: str, tmp_path: Path) -> None:
    trial = a_trial("dropout", tmp_path, Options(environment={"SPOT_TEST_PERTURB": generator}))
    plain = trial.train_plainly()
    found = differences(plain, trial.train_on_spot(kills=1))
    assert found
    assert found[0].startswith("curves/train/loss/")
    assert any(line.startswith(f"rng/{generator}") for line in found)
