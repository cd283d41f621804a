"""A training that resumes bit for bit."""

import argparse
import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import spotckpt


class Noisy(Dataset):
    """Draws from all three generators, so that a resume has to bring each of them back."""

    def __init__(self):
        self.x = torch.randn(64, 16)

    def __len__(self):
        return 64

    def __getitem__(self, index):
        x = self.x[index] + random.random() + float(np.random.rand()) + torch.rand(16)
        return x, x.sum(0, keepdim=True)


@spotckpt.resumable(every="5 steps")
def train(run, workers):
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    loader = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=workers)
    model = torch.nn.Sequential(torch.nn.Linear(16, 2048), torch.nn.Dropout(0.1), torch.nn.Linear(2048, 1))
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for _ in run.epochs(3):
        for x, y in run.batches(loader):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log("train", loss=loss.item())
        scheduler.step()


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=0)
    spotckpt.add_arguments(parser)
    arguments = parser.parse_args()
    train.at(arguments.resume)(arguments.workers)
