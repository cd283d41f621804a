"""The demo's training as everybody writes it, without spotckpt: what the interrupted one has to equal."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from spotckpt.demo.task import EPOCHS, build, evaluate, parse_arguments, report, save_end_state, step


def train(seed: int, out: Path) -> None:
    """Trains without a break."""
    model, optimizer, scheduler, loader, valid = build(seed)
    losses: dict[str, list[float]] = {"train": [], "valid": []}
    for _ in range(EPOCHS):
        for images, labels in loader:
            losses["train"].append(step(model, optimizer, images, labels))
        losses["valid"].append(evaluate(model, valid))
        scheduler.step(fmean(losses["train"][-len(loader) :]))
        report(losses, optimizer)
    save_end_state(out, model, optimizer, scheduler, losses)


if __name__ == "__main__":
    arguments = parse_arguments()
    train(arguments.seed, arguments.out)
