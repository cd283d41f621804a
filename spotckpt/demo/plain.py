"""The demo's training as everybody writes it, without spotckpt: what the interrupted one has to equal."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from spotckpt.demo.task import EPOCHS, build, evaluate, parse_arguments, report, save_end_state, step


def train(seed: int, out: Path) -> None:
    """Trains without a break."""
    model, optimizer, scheduler, loader, valid = build(seed)
    train_loss: list[float] = []
    valid_loss: list[float] = []
    for _ in range(EPOCHS):
        for images, labels in loader:
            train_loss.append(step(model, optimizer, images, labels))
        valid_loss.append(evaluate(model, valid))
        scheduler.step(fmean(train_loss[-len(loader) :]))
        report(train_loss, valid_loss, optimizer)
    save_end_state(out, model, optimizer, scheduler, {"train": train_loss, "valid": valid_loss})


if __name__ == "__main__":
    arguments = parse_arguments()
    train(arguments.seed, arguments.out)
