"""Seeds torch, and augments with numpy's global generator, which nobody seeded."""

import numpy as np
import torch

import spotckpt


@spotckpt.resumable()
def train(run):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.track(model=model, optimizer=optimizer)
    for _ in run.steps(12):
        x = torch.randn(16, 8) * float(np.random.uniform(0.9, 1.1))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log("train", loss=loss.item())


if __name__ == "__main__":
    train()
