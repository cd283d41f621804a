"""Cases whose subject is something in the model, or a second one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from tests.bitexact.case import case, evaluate, pause, perceptron, points
from tests.bitexact.outcome import Outcome

if TYPE_CHECKING:
    from spotckpt import Run


@case("batchnorm")
class BatchNorm:
    """Running statistics are buffers that no optimizer owns; the evaluation between the epochs uses them."""

    num_batches = 6 * 12

    def __init__(self) -> None:
        self.data = points()
        self.model = nn.Sequential(
            nn.Unflatten(1, (1, 8)),
            nn.Conv1d(1, 4, 3),
            nn.BatchNorm1d(4, momentum=0.3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 3),
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.loader = DataLoader(self.data, batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        losses, valid = [], []
        for _epoch in range(6):
            for x, y in self.loader:
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(x), y)
                loss.backward()
                self.optimizer.step()
                losses.append(loss.item())
            valid.append(evaluate(self.model, self.data))
        return self._outcome(losses, valid)

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, optimizer=self.optimizer)
        for _epoch in run.epochs(6):
            for x, y in run.batches(self.loader):
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(x), y)
                pause(run)
                loss.backward()
                self.optimizer.step()
                run.log("train", loss=loss.item())
            run.log("valid", loss=evaluate(self.model, self.data))
        return self._outcome(list(run.history["train"]["loss"]), list(run.history["valid"]["loss"]))

    def _outcome(self, losses: list[float], valid: list[float]) -> Outcome:
        objects = {"model": self.model, "optimizer": self.optimizer}
        return Outcome(objects, {"train/loss": losses, "valid/loss": valid})


@case("dropout")
class Dropout:
    """Dropout draws from torch's generator, the noise on the input from NumPy's and the mixing from Python's."""

    num_batches = 6 * 12

    def __init__(self) -> None:
        self.model = perceptron(nn.ReLU(), nn.Dropout(0.3))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.loader = DataLoader(points(), batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        losses = []
        for _epoch in range(6):
            for x, y in self.loader:
                losses.append(self._step(x, y))
        return Outcome({"model": self.model, "optimizer": self.optimizer}, {"train/loss": losses})

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, optimizer=self.optimizer)
        for _epoch in run.epochs(6):
            for x, y in run.batches(self.loader):
                pause(run)
                run.log("train", loss=self._step(x, y))
        losses = list(run.history["train"]["loss"])
        return Outcome({"model": self.model, "optimizer": self.optimizer}, {"train/loss": losses})

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        noise = torch.from_numpy(np.random.standard_normal(x.shape).astype(np.float32))
        share = random.random() * random.gauss(0.1, 0.02)
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x + share * noise), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()


@case("tied_weights")
class TiedWeights:
    """A language model whose decoder is its embedding; the optimizer holds the matrix once."""

    num_batches = 6 * 12

    def __init__(self) -> None:
        self.embedding = nn.Embedding(11, 8)
        self.decoder = nn.Linear(8, 11)
        self.decoder.weight = self.embedding.weight
        self.model = nn.Sequential(self.embedding, nn.Linear(8, 8), nn.Tanh(), self.decoder)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02)
        words = torch.arange(97) * torch.arange(97) % 11
        self.loader = DataLoader(TensorDataset(words[:-1], words[1:]), batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        losses = []
        for _epoch in range(6):
            for x, y in self.loader:
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(x), y)
                loss.backward()
                self.optimizer.step()
                losses.append(loss.item())
        return self._outcome(losses)

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
        return self._outcome(list(run.history["train"]["loss"]))

    def _outcome(self, losses: list[float]) -> Outcome:
        tied = self.decoder.weight.data_ptr() == self.embedding.weight.data_ptr()
        return Outcome({"model": self.model, "optimizer": self.optimizer}, {"train/loss": losses}, {"tied": tied})


@case("ema")
class MovingAverage:
    """An exponential moving average of the model, buffers too, which is evaluated between the epochs."""

    num_batches = 6 * 12

    def __init__(self) -> None:
        self.data = points()
        self.model = perceptron(nn.BatchNorm1d(16), nn.ReLU())
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.loader = DataLoader(self.data, batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        losses, valid = [], []
        for _epoch in range(6):
            for x, y in self.loader:
                losses.append(self._step(x, y))
                self.ema.update_parameters(self.model)
            valid.append(evaluate(self.ema, self.data))
        return self._outcome(losses, valid)

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, ema=self.ema, optimizer=self.optimizer)
        for _epoch in run.epochs(6):
            for x, y in run.batches(self.loader):
                run.log("train", loss=self._step(x, y))
                pause(run)
                self.ema.update_parameters(self.model)
            run.log("valid", loss=evaluate(self.ema, self.data))
        return self._outcome(list(run.history["train"]["loss"]), list(run.history["valid"]["loss"]))

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _outcome(self, losses: list[float], valid: list[float]) -> Outcome:
        objects = {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}
        return Outcome(objects, {"train/loss": losses, "valid/loss": valid})
