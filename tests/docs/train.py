"""The training of the pages: small, seeded, with a metric of each set and a snapshot at step 1200."""

import argparse

import torch

import spotckpt

STEPS = 1300


@spotckpt.resumable(every="1000 steps", keep_best="valid/top1:max")
def train(run, lr=0.05):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    for _ in run.steps(STEPS):
        x = torch.randn(16, 8)
        loss = (model(x) - x[:, :4]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log("train", loss=loss.item())
        if run.step % 400 == 399:
            run.log("valid", top1=run.step / STEPS)
        if run.step == 1199:
            run.save()  # at the next boundary, which is number 1200
    return run.history["train"]["loss"][-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.05)
    spotckpt.add_arguments(parser, option="--resume")
    arguments = parser.parse_args()
    train.at(arguments.resume)(lr=arguments.lr)
