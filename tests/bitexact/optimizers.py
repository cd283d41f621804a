"""Cases whose subject is the optimizer and what stands around it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tests.bitexact.case import case, evaluate, pause, perceptron, points
from tests.bitexact.outcome import Outcome

if TYPE_CHECKING:
    from spotckpt import Run


@case("sgd_momentum")
class SgdMomentum:
    """SGD with Nesterov momentum; killed between backward and the optimizer's step."""

    num_batches = 6 * 12

    def __init__(self) -> None:
        self.model = perceptron()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        self.loader = DataLoader(points(), batch_size=8, shuffle=True)

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


@case("adamw_fused")
class FusedAdamW:
    """AdamW(fused=True): its kernel bumps no version counter of its moments."""

    num_batches = 6 * 12

    def __init__(self) -> None:
        self.model = perceptron(nn.GELU())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, amsgrad=True, fused=True)
        self.loader = DataLoader(points(), batch_size=8, shuffle=True)

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
                self.optimizer.step()
                pause(run)
                run.log("train", loss=loss.item())
        losses = list(run.history["train"]["loss"])
        return Outcome({"model": self.model, "optimizer": self.optimizer}, {"train/loss": losses})


@case("onecycle")
class OneCycle:
    """OneCycleLR, stepped per batch; killed between the optimizer's and the scheduler's step."""

    num_batches = 6 * 12

    def __init__(self) -> None:
        self.model = perceptron(nn.Tanh())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=0.4, total_steps=72)
        self.loader = DataLoader(points(), batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        losses, rates = [], []
        for _epoch in range(6):
            for x, y in self.loader:
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(x), y)
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                losses.append(loss.item())
                rates.append(self.scheduler.get_last_lr()[0])
        return self._outcome(losses, rates)

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)
        for _epoch in run.epochs(6):
            for x, y in run.batches(self.loader):
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(x), y)
                loss.backward()
                self.optimizer.step()
                pause(run)
                self.scheduler.step()
                run.log("train", loss=loss.item(), lr=self.scheduler.get_last_lr()[0])
        return self._outcome(list(run.history["train"]["loss"]), list(run.history["train"]["lr"]))

    def _outcome(self, losses: list[float], rates: list[float]) -> Outcome:
        objects = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return Outcome(objects, {"train/loss": losses, "train/lr": rates})


@case("plateau")
class Plateau:
    """ReduceLROnPlateau per epoch, fed from the metric history; the last epochs' mean, so that all of it counts."""

    num_batches = 8 * 12

    def __init__(self) -> None:
        self.data = points()
        self.model = perceptron()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.5)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.5, patience=1, threshold=0.6
        )
        self.loader = DataLoader(self.data, batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        losses, valid = [], []
        for _epoch in range(8):
            for x, y in self.loader:
                losses.append(self._step(x, y))
            valid.append(evaluate(self.model, self.data))
            self.scheduler.step(sum(valid[-3:]) / len(valid[-3:]))
        assert self.optimizer.param_groups[0]["lr"] < 0.2, "the plateau was never seen"
        return self._outcome(losses, valid)

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)
        for _epoch in run.epochs(8):
            for x, y in run.batches(self.loader):
                run.log("train", loss=self._step(x, y))
                pause(run)
            run.log("valid", loss=evaluate(self.model, self.data))
            recent = run.history["valid"]["loss"][-3:]
            self.scheduler.step(sum(recent) / len(recent))
        return self._outcome(list(run.history["train"]["loss"]), list(run.history["valid"]["loss"]))

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _outcome(self, losses: list[float], valid: list[float]) -> Outcome:
        objects = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return Outcome(objects, {"train/loss": losses, "valid/loss": valid})


@case("gradscaler")
class Scaler:
    """GradScaler at the edge of float32: every few batches the gradients overflow and the step is left out."""

    num_batches = 6 * 12

    def __init__(self) -> None:
        self.model = perceptron()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124, growth_interval=3)
        self.loader = DataLoader(points(), batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        losses, scales = [], []
        for _epoch in range(6):
            for x, y in self.loader:
                losses.append(self._step(x, y))
                scales.append(self.scaler.get_scale())
        drops = sum(later < earlier for earlier, later in itertools.pairwise(scales))
        assert 6 < drops < len(scales) / 2, "few steps or too many were infinite"
        return self._outcome(losses, scales)

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, optimizer=self.optimizer, scaler=self.scaler)
        for _epoch in run.epochs(6):
            for x, y in run.batches(self.loader):
                run.log("train", loss=self._step(x, y), scale=self.scaler.get_scale())
                pause(run)
        return self._outcome(list(run.history["train"]["loss"]), list(run.history["train"]["scale"]))

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = 16 * cross_entropy(self.model(x), y)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()

    def _outcome(self, losses: list[float], scales: list[float]) -> Outcome:
        objects = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return Outcome(objects, {"train/loss": losses, "train/scale": scales})


@case("two_optimizers")
class Adversarial:
    """A GAN: the generator's backward leaves gradients in the discriminator, which its optimizer never takes."""

    num_batches = 6 * 12

    def __init__(self) -> None:
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.critic = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=0.01, betas=(0.5, 0.9))
        self.critic_optimizer = torch.optim.RMSprop(self.critic.parameters(), lr=0.005)
        self.loader = DataLoader(TensorDataset(points().tensors[0]), batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        critic_losses, generator_losses = [], []
        for _epoch in range(6):
            for (real,) in self.loader:
                critic_losses.append(self._critic_step(real))
                generator_losses.append(self._generator_step(len(real)))
        return self._outcome(critic_losses, generator_losses)

    def spot(self, run: Run) -> Outcome:
        run.track(
            generator=self.generator,
            critic=self.critic,
            generator_optimizer=self.generator_optimizer,
            critic_optimizer=self.critic_optimizer,
        )
        for _epoch in run.epochs(6):
            for (real,) in run.batches(self.loader):
                run.log("train", critic=self._critic_step(real))
                pause(run)
                run.log("train", generator=self._generator_step(len(real)))
        return self._outcome(list(run.history["train"]["critic"]), list(run.history["train"]["generator"]))

    def _critic_step(self, real: torch.Tensor) -> float:
        self.critic_optimizer.zero_grad()
        fake = self.generator(torch.randn(len(real), 4)).detach()
        verdicts = self.critic(torch.cat([real, fake])).squeeze(1)
        loss = binary_cross_entropy_with_logits(verdicts, (torch.arange(len(verdicts)) < len(real)).float())
        loss.backward()
        self.critic_optimizer.step()
        return loss.item()

    def _generator_step(self, count: int) -> float:
        self.generator_optimizer.zero_grad()
        verdicts = self.critic(self.generator(torch.randn(count, 4))).squeeze(1)
        loss = binary_cross_entropy_with_logits(verdicts, torch.ones(count))
        loss.backward()
        self.generator_optimizer.step()
        return loss.item()

    def _outcome(self, critic_losses: list[float], generator_losses: list[float]) -> Outcome:
        objects = {
            "generator": self.generator,
            "critic": self.critic,
            "generator_optimizer": self.generator_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }
        return Outcome(objects, {"train/critic": critic_losses, "train/generator": generator_losses})


@case("accumulation")
class Accumulation:
    """Gradients of four batches make a step; windows straddle epochs of ten, and the last one stays open."""

    num_batches = 7 * 10

    def __init__(self) -> None:
        self.model = perceptron()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2, momentum=0.9)
        self.loader = DataLoader(points(80), batch_size=8, shuffle=True)

    def plain(self) -> Outcome:
        losses: list[float] = []
        for _epoch in range(7):
            for x, y in self.loader:
                loss = cross_entropy(self.model(x), y) / 4
                loss.backward()
                losses.append(loss.item())
                if len(losses) % 4 == 0:
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        return self._outcome(losses, {"seen": len(losses)})

    def spot(self, run: Run) -> Outcome:
        run.track(model=self.model, optimizer=self.optimizer)
        for _epoch in run.epochs(7):
            for x, y in run.batches(self.loader):
                loss = cross_entropy(self.model(x), y) / 4
                loss.backward()
                pause(run)
                run.log("train", loss=loss.item())
                run.vars["seen"] = run.vars.get("seen", 0) + 1
                if run.vars["seen"] % 4 == 0:
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        return self._outcome(list(run.history["train"]["loss"]), dict(run.vars))

    def _outcome(self, losses: list[float], values: dict[str, object]) -> Outcome:
        gradients = [parameter.grad for parameter in self.model.parameters()]
        assert all(gradient is not None for gradient in gradients), "the open window is gone"
        objects = {"model": self.model, "optimizer": self.optimizer, "gradients": gradients}
        return Outcome(objects, {"train/loss": losses}, values)
