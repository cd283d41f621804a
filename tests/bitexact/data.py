"""Cases whose subject is where the batches come from."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.bitexact.case import case, pause, perceptron, points
from tests.bitexact.outcome import Outcome

if TYPE_CHECKING:
    from spotckpt import Run

Pair = tuple[torch.Tensor, torch.Tensor]


class Augmented(Dataset[Pair]):
    """The points with noise from every global generator of the process that loads them."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Pair:
        x, y = self.data[index]
        scale = random.uniform(0.8, 1.2) + 0.1 * np.random.random()
        return x * scale + 0.1 * torch.randn(8), y


class _FromLoader:
    """The loop that these cases share; the loader is the difference."""

    num_batches = 6 * 12
    loader: Iterable[Pair]

    def __init__(self) -> None:
        self.model = perceptron(nn.ReLU(), nn.Dropout(0.2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def plain(self) -> Outcome:
        losses = []
        for _epoch in range(6):
            for x, y in self.loader:
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(x), y)
                loss.backward()
                self.optimizer.step()
                losses.append(loss.item())
        return Outcome({"model": self.model, "optimizer": self.optimizer}, {"train/loss": losses})

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, optimizer=self.optimizer)
        for _epoch in run.epochs(6):
            for x, y in run.batches(self.loader):
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(x), y)
                loss.backward()
                pause(run)
                self.optimizer.step()
                run.log("train", loss=loss.item())
        losses = list(run.history["train"]["loss"])
        return Outcome({"model": self.model, "optimizer": self.optimizer}, {"train/loss": losses})


@case("worker_augmentation")
class WorkerAugmentation(_FromLoader):
    """Two workers that augment at random and prefetch beyond the batch that is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.loader = DataLoader(Augmented(points()), batch_size=8, shuffle=True, num_workers=2)


@case("own_generator")
class OwnGenerator(_FromLoader):
    """The shuffle comes from a generator of the loader's own, which goes on from epoch to epoch."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(torch.initial_seed() + 1)
        self.loader = DataLoader(Augmented(points()), batch_size=8, shuffle=True, generator=generator)


@case("stateful_loader")
class StatefulLoader(_FromLoader):
    """torchdata's loader, which carries its position in a state of its own."""

    def __init__(self) -> None:
        from torchdata.stateful_dataloader import StatefulDataLoader

        super().__init__()
        self.loader = StatefulDataLoader(points(), batch_size=8, shuffle=True)


@case("stateful_loader_workers")
class StatefulLoaderWorkers(_FromLoader):
    """The same with two workers."""

    def __init__(self) -> None:
        from torchdata.stateful_dataloader import StatefulDataLoader

        super().__init__()
        self.loader = StatefulDataLoader(points(), batch_size=8, shuffle=True, num_workers=2)
