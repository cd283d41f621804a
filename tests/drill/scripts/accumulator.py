"""Adds the losses up in a variable, and logs their mean after each epoch."""

import torch

import spotckpt


@spotckpt.resumable()
def train(run):
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.randn(48, 8), batch_size=8, shuffle=True)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs(2):
        total = 0.0
        for x in run.batches(loader):
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        run.log("train", loss=total / len(loader))


if __name__ == "__main__":
    train()
