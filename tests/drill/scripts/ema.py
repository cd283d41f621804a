"""Keeps a moving average of the weights, evaluates it after each epoch, and does not track it."""

import copy

import torch

import spotckpt


@spotckpt.resumable()
def train(run):
    torch.manual_seed(0)
    data = torch.randn(48, 8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run.track(model=model, optimizer=optimizer)
    average = copy.deepcopy(model)
    for _ in run.epochs(2):
        for x in run.batches(torch.utils.data.DataLoader(data, batch_size=8)):
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(parameter, 0.1)
        with torch.no_grad():
            run.log("valid", loss=(average(data) - data.sum(1, keepdim=True)).square().mean().item())


if __name__ == "__main__":
    train()
