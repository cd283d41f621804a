"""The gradient of an indexing is added up by two threads in whatever order they come."""

import torch

import spotckpt


@spotckpt.resumable()
def train(run):
    torch.manual_seed(0)
    table = torch.nn.Embedding(4, 1)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.01)
    run.track(table=table, optimizer=optimizer)
    for _ in run.steps(12):
        rows, values = torch.randint(0, 4, (100_000,)), torch.randn(100_000)
        loss = (table.weight[rows, 0] * values).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log("train", loss=loss.item())


if __name__ == "__main__":
    torch.set_num_threads(2)
    train()
