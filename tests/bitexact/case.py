"""What a case of the matrix is, and the hooks by which the harness gets a hold of its training."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.bitexact.outcome import Outcome

if TYPE_CHECKING:
    from spotckpt import Run


class Case(Protocol):
    """A training written twice: as anybody would without spotckpt, and as a user of spotckpt would.

    The constructor builds model, optimizer, loader and so on from the global generators, which the worker has seeded.
    """

    num_batches: int

    def plain(self) -> Outcome:
        """The loop without spotckpt."""

    def spot(self, run: Run) -> Outcome:
        """The same with it."""


CASES: dict[str, type[Case]] = {}
_C = TypeVar("_C", bound=type[Case])


def case(name: str) -> Callable[[_C], _C]:
    """Registers a class as the case of that name."""

    def register(cls: _C) -> _C:
        CASES[name] = cls
        return cls

    return register


def seed_everything(seed: int) -> None:
    """Seeds every global generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def points(count: int = 96) -> TensorDataset:
    """`count` labelled points, the same in every process: x float32[8], y of three classes."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 8, generator=generator)
    return TensorDataset(x, (x @ torch.randn(8, 3, generator=generator)).argmax(dim=1))


def perceptron(*layers: nn.Module) -> nn.Sequential:
    """8 → 16 → 3, with the layers given in the middle."""
    return nn.Sequential(nn.Linear(8, 16), *(layers or (nn.ReLU(),)), nn.Linear(16, 3))


def evaluate(model: nn.Module, data: TensorDataset) -> float:
    """The model's loss on all the data, in evaluation mode; draws nothing from a generator."""
    model.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1])
    model.train()
    return loss.item()


_DELAY = float(os.environ.get("SPOT_TEST_DELAY", "0"))
_HOLD = int(os.environ.get("SPOT_TEST_HOLD", "-1"))
_PERTURB = os.environ.get("SPOT_TEST_PERTURB", "")
_TRACE = os.environ.get("SPOT_TEST_TRACE", "")
_seen: set[str] = set()


def pause(run: Run) -> None:
    """Called somewhere in every batch of a spot loop: makes it last, so that a kill may land here.

    The first call of a process reports where the training goes on. The environment may ask to perturb one generator
    then (to see whether the harness notices), and to hold the training when `run.step` has come to a number, until it
    is killed or told to go.
    """
    if "first" not in _seen:
        _seen.add("first")
        _report(run)
        if run.resumed_from is not None and _PERTURB:
            {"torch": lambda: torch.rand(1), "numpy": np.random.random, "python": random.random}[_PERTURB]()
    time.sleep(_DELAY)
    while 0 <= _HOLD <= run.step and not Path(f"{_TRACE}.go").exists():
        time.sleep(0.01)


def _report(run: Run) -> None:
    if _TRACE:
        resumed_from = None if run.resumed_from is None else str(run.resumed_from)
        where = {"step": run.step, "epoch": run.epoch, "batch": run.batch, "resumed_from": resumed_from}
        temporary = Path(f"{_TRACE}.new")
        temporary.write_text(json.dumps(where))
        temporary.replace(_TRACE)
