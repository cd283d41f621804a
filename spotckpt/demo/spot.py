"""The same training with spotckpt, on machines that go away; nothing here prepares for being killed.

The decorator, `track`, `run.epochs`, `run.batches` and `run.log` are all that differs.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import spotckpt
from spotckpt.demo.task import EPOCHS, build, evaluate, parse_arguments, report, save_end_state, step


@spotckpt.resumable(every="25 steps", stale_after="20s")
def train(run: spotckpt.Run, *, seed: int, out: Path) -> None:
    """Trains, from the start or from where an earlier machine stopped."""
    model, optimizer, scheduler, loader, valid = build(seed)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for _ in run.epochs(EPOCHS):
        for images, labels in run.batches(loader):
            run.log("train", loss=step(model, optimizer, images, labels))
        run.log("valid", loss=evaluate(model, valid))
        losses = {name: run.history[name]["loss"] for name in ("train", "valid")}
        scheduler.step(fmean(losses["train"][-len(loader) :]))
        report(losses, optimizer)
    save_end_state(out, model, optimizer, scheduler, losses)


if __name__ == "__main__":
    arguments = parse_arguments()
    train(seed=arguments.seed, out=arguments.out)
