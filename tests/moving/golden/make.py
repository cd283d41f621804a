"""Makes the golden files of the present format: `python -m tests.moving.golden.make`. Older ones are never changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from spotckpt.adapters.pytorchcheckpoint import CheckpointHandler
from spotckpt.moving.contents import FORMAT, Contents
from spotckpt.moving.files import write
from spotckpt.moving.formats import format_of
from spotckpt.moving.histories import columns_of
from spotckpt.snapshot.metrics import History
from tests.moving.made import FILES


def golden() -> Contents:
    """One of everything, small."""
    model, history = module(), History()
    history.log("train", {"loss": 0.5}, step=1, epoch=0)
    history.log("valid", {"top1": float("inf")}, step=2, epoch=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Contents(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        {"model": "module", "optimizer": "optimizer"},
        run={"step": 2, "at": {"epoch": 1, "batch": 0}},
        vars={"array": np.arange(3, dtype="<u2"), "tuple": (1, b"x", {2}), "long": 2**70, "odd": {"$x": {1: None}}},
        history=columns_of(history),
        step=2,
        epoch=1,
        arguments={"lr": 0.1},
        environment={"torch": "2.13.0"},
        evaluated={"valid/top1": 0.5},
        source="s3://bucket/run",
    )


def module() -> torch.nn.Module:
    """A layer with known weights."""
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.bias.fill_(3.0)
    return layer


def main() -> None:
    """Writes them."""
    folder = Path(__file__).parent / f"format-{FORMAT}"
    folder.mkdir()
    for name in FILES:
        write(golden(), folder / name, format_of(folder / name, None))
    handler = CheckpointHandler()
    handler.store_running_var_with_header("train", "top1", 0, 80)
    handler.save_checkpoint(folder / "handler.pth.tar", 7, module())


if __name__ == "__main__":
    main()
