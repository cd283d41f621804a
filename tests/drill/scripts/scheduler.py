"""Lowers the learning rate after each third of the steps, and does not track what counts them."""

import torch

import spotckpt


@spotckpt.resumable()
def train(run):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
    run.track(model=model, optimizer=optimizer)
    for _ in run.steps(12):
        x = torch.randn(16, 8)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


if __name__ == "__main__":
    train()
