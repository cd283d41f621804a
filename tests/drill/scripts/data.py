"""Reads its data from a file, which somebody else writes anew before the third start."""

from pathlib import Path

import numpy as np
import torch

import spotckpt


@spotckpt.resumable()
def train(run):
    torch.manual_seed(0)
    data = torch.from_numpy(np.load("data.npy"))
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.track(model=model, optimizer=optimizer)
    for x in run.batches(torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    starts = Path("starts")
    starts.write_text(starts.read_text() + "." if starts.exists() else ".")
    if len(starts.read_text()) in (1, 3):
        np.save("data.npy", np.random.default_rng(len(starts.read_text())).normal(size=(48, 8)).astype(np.float32))
    train()
