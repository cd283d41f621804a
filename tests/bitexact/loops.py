"""Cases whose subject is the loop itself and what it carries along."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from tests.bitexact.case import case, evaluate, pause, perceptron, points
from tests.bitexact.outcome import Outcome

if TYPE_CHECKING:
    from spotckpt import Run


@case("steps")
class Steps:
    """No epochs and no loader: each step draws its own batch from generators that the user made and tracks."""

    num_batches = 80

    def __init__(self) -> None:
        self.x, self.y = points().tensors
        self.model = perceptron()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        seed = torch.initial_seed()
        self.choice = torch.Generator().manual_seed(seed)
        self.noise = np.random.default_rng(seed)
        self.coin = random.Random(seed)

    def plain(self) -> Outcome:
        losses = [self._step() for _ in range(80)]
        return self._outcome(losses)

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, optimizer=self.optimizer, choice=self.choice, noise=self.noise, coin=self.coin)
        for _ in run.steps(80):
            pause(run)
            run.log("train", loss=self._step())
        return self._outcome(list(run.history["train"]["loss"]))

    def _step(self) -> float:
        rows = torch.randint(len(self.x), (8,), generator=self.choice)
        x = self.x[rows] + torch.from_numpy(self.noise.normal(0, 0.1, (8, 8)).astype(np.float32))
        if self.coin.random() < 0.5:
            x = x + 0.1 * torch.randn(8, 8)
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x), self.y[rows])
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _outcome(self, losses: list[float]) -> Outcome:
        objects = {"model": self.model, "optimizer": self.optimizer}
        generators = {"choice": self.choice, "noise": self.noise, "coin": self.coin}
        return Outcome(objects | generators, {"train/loss": losses})


@case("early_stopping")
class EarlyStopping:
    """Stops when the validation has not improved much for four epochs; the running mean sets the rate."""

    num_batches = 9 * 12

    def __init__(self) -> None:
        self.data = points()
        self.model = perceptron()
        self.rate = 0.05
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.rate, momentum=0.9)
        self.loader = DataLoader(self.data, batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        losses, valid, best, waited, seen = [], [], math.inf, 0, 0
        for _epoch in range(40):
            of_epoch = []
            for x, y in self.loader:
                loss = self._loss(x, y)
                losses.append(loss.item())
                of_epoch.append(loss.item())
                self._step(loss, mean=math.fsum(of_epoch) / len(of_epoch))
                seen += len(y)
            valid.append(evaluate(self.model, self.data))
            best, waited = (valid[-1], 0) if valid[-1] < best - 0.25 else (best, waited + 1)
            if waited == 4:
                break
        assert len(losses) == self.num_batches, f"stopped after {len(losses)} batches"
        return self._outcome(losses, valid, {"best": best, "waited": waited, "seen": seen})

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, optimizer=self.optimizer)
        for name, value in {"best": math.inf, "waited": 0, "seen": 0}.items():
            run.vars.setdefault(name, value)
        for _epoch in run.epochs(40):
            for x, y in run.batches(self.loader):
                loss = self._loss(x, y)
                run.log("train", loss=loss.item())
                pause(run)
                self._step(loss, mean=run.mean("train", "loss"))
                run.vars["seen"] += len(y)
            valid = evaluate(self.model, self.data)
            run.log("valid", loss=valid)
            if valid < run.vars["best"] - 0.25:
                run.vars["best"], run.vars["waited"] = valid, 0
            else:
                run.vars["waited"] += 1
            if run.vars["waited"] == 4:
                break
        return self._outcome(list(run.history["train"]["loss"]), list(run.history["valid"]["loss"]), dict(run.vars))

    def _loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x), y)
        loss.backward()
        return loss

    def _step(self, loss: torch.Tensor, *, mean: float) -> None:
        self.optimizer.param_groups[0]["lr"] = self.rate / (1.0 + loss.item() / mean)
        self.optimizer.step()

    def _outcome(self, losses: list[float], valid: list[float], values: dict[str, object]) -> Outcome:
        objects = {"model": self.model, "optimizer": self.optimizer}
        return Outcome(objects, {"train/loss": losses, "valid/loss": valid}, values)
