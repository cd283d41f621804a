"""A training loop that is killed at boundaries and started again, and the same loop plainly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from spotckpt.training.position import Position
from tests.training.roundtrip import value_through_bytes

NUM_EPOCHS = 2
MakeLoader = Callable[[], Iterable[Any]]


class Killed(BaseException):
    """The process ends here."""


def draws() -> list[float]:
    """What a training step draws from the global generators."""
    return [torch.rand(()).item(), float(np.random.rand()), random.random()]


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def plain(make: MakeLoader, *, num_epochs: int = NUM_EPOCHS) -> list[Any]:
    """The trace of the loop as anybody writes it."""
    seed(0)
    loader, trace = make(), []
    for epoch in range(num_epochs):
        for batch in loader:
            trace.append((epoch, as_list(batch), draws()))
        trace.append((epoch, "end", draws()))
    return trace


def as_list(batch: Any) -> Any:
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


@dataclass
class Life:
    """One process: it ends at its n-th boundary, counted from its start, or with the loop."""

    make: MakeLoader
    snapshot: tuple[Any, list[Any]] | None = None
    resume: str = "replay"
    seed: int = 0
    num_epochs: int = NUM_EPOCHS
    said: list[str] = field(default_factory=list)
    replayed: list[tuple[int, int]] = field(default_factory=list)

    def run(self, *, kill_at: int | None = None) -> list[Any] | None:
        """The whole trace; None when it was killed: `snapshot` is what the next life starts from."""
        seed(self.seed)
        loader = self.make()
        position = Position(say=self.said.append, progress=lambda done, total: self.replayed.append((done, total)))
        trace: list[Any] = []
        if self.snapshot is not None:
            state, trace = self.snapshot[0], list(self.snapshot[1])
            position.load(state)
        boundaries = 0

        def boundary() -> None:
            nonlocal boundaries
            boundaries += 1
            if boundaries == kill_at:
                self.snapshot = (value_through_bytes(position.state()), list(trace))
                raise Killed

        try:
            for epoch in position.epochs(self.num_epochs, on_epoch_end=boundary):
                for batch in position.batches(loader, resume=self.resume, on_boundary=boundary):
                    trace.append((epoch, as_list(batch), draws()))
                trace.append((epoch, "end", draws()))
        except Killed:
            return None
        assert not position.resuming
        return trace

    def next(self) -> Life:
        return Life(self.make, self.snapshot, self.resume, self.seed + 1000, self.num_epochs)


def lives(
    make: MakeLoader, kills: Iterable[int], *, resume: str = "replay", num_epochs: int = NUM_EPOCHS
) -> list[Life]:
    """Lives that end at these boundaries each, and a last one that is not killed; its trace is `trace_of`."""
    life = Life(make, resume=resume, num_epochs=num_epochs)
    found = [life]
    for kill_at in kills:
        if life.run(kill_at=kill_at) is not None:
            raise AssertionError(f"the loop was over before boundary {kill_at}")
        life = life.next()
        found.append(life)
    return found


def interrupted(make: MakeLoader, kills: Iterable[int], *, resume: str = "replay", num_epochs: int = NUM_EPOCHS) -> Any:
    """The trace of a training that was killed at these boundaries, each counted from the start of its life."""
    return lives(make, kills, resume=resume, num_epochs=num_epochs)[-1].run()
