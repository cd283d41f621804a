"""A training for the systemd tests: a model with dropout and momentum, a few MB of state, a step that takes a while."""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import torch

import spotckpt

STEPS = 1000


def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 700), torch.nn.Dropout(0.1), torch.nn.Linear(700, 700))
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(4, 8)
    optimizer.zero_grad()
    (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
    optimizer.step()


def digest(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    found = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for tensor in model.state_dict().values():
        found.update(tensor.numpy().tobytes())
    for state in optimizer.state_dict()["state"].values():
        found.update(state["momentum_buffer"].numpy().tobytes())
    return found.hexdigest()


def plain() -> str:
    model, optimizer = build()
    for _ in range(STEPS):
        step(model, optimizer)
    return digest(model, optimizer)


@spotckpt.resumable(every="0.5s", stale_after="10s", sigterm_grace="1s")
def train(run: spotckpt.Run, *, out: Path, pace: float) -> None:
    model, optimizer = build()
    run.track(model=model, optimizer=optimizer)
    for _ in run.steps(STEPS):
        step(model, optimizer)
        time.sleep(pace)
    out.write_text(digest(model, optimizer))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pace", type=float, default=0.0)
    given = parser.parse_args()
    train(out=given.out, pace=given.pace)
