"""Checkpoints with something of everything, and runs that hold them."""

from __future__ import annotations

import collections
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spotckpt.moving.contents import Contents
from spotckpt.moving.files import read
from spotckpt.moving.formats import format_of
from spotckpt.moving.histories import Columns, columns_of
from spotckpt.moving.push import push
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.metrics import History
from spotckpt.store.open import open_store
from spotckpt.training.rng import capture_rng

FILES = ("checkpoint.pt", "checkpoint.safetensors", "checkpoint.dcp")


def model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))


def stepped(one: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(one.parameters(), lr=0.1)
    one(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return optimizer


def history() -> Columns:
    found = History()
    for step in range(5):
        found.log("train", {"loss": 1 / (step + 1)}, step=step, epoch=step // 2)
    found.log("valid", {"top1": math.nan}, step=4, epoch=1)
    found.log("valid", {"own": 2.5}, step=12, given=True)
    found.log("valid", {"confusion": np.array([[5, 1], [0, 4]])}, step=4, epoch=1)
    return columns_of(found)


def contents(**more: Any) -> Contents:
    """Every kind of value that a snapshot can hold, in objects and in vars."""
    one = model()
    values = {
        "class_to_idx": {"cat": 0, "dog": 1},
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "scalar": np.float32(0.1),
        "bytes": b"\xff\x00",
        "set": {1, 2},
        "deque": collections.deque([torch.ones(2)], maxlen=3),
        "tuple": (torch.zeros(3), None),
        "long": 2**70,
        "nan": float("nan"),
        "odd": {"$tensor": 1, (1, 2): "x", 7: torch.ones(2, dtype=torch.complex128)},
        "float8": torch.ones(2).to(torch.float8_e5m2),
        "channels_last": torch.randn(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "nothing": {},
        "none": torch.zeros(0, 3),
    }
    given: dict[str, Any] = {
        "objects": {"model": one.state_dict(), "optimizer": stepped(one).state_dict(), "fresh": _fresh(one)},
        "kinds": {"model": "module", "optimizer": "optimizer", "fresh": "optimizer"},
        "run": {"step": 5, "position": {"rng": capture_rng()}, "gradients": {"optimizer": {0: torch.ones(2)}}},
        "vars": values,
        "history": history(),
        "step": 5,
        "epoch": 1,
        "arguments": {"lr": 0.1},
        "environment": {"torch": "2"},
        "evaluated": {"valid/top1": 0.5},
        "source": "s3://bucket/run",
    }
    return Contents(**{**given, **more})


def _fresh(one: torch.nn.Module) -> dict[str, Any]:
    return torch.optim.SGD(one.parameters(), lr=1.0).state_dict()


def weights(num_bytes: int, tensors: int = 1) -> dict[str, torch.Tensor]:
    """Random ones: none is like another, or like memory that nobody has written."""
    generator = torch.Generator().manual_seed(num_bytes)
    count = num_bytes // tensors // 4
    return {f"layer{k}.weight": torch.randn(count, generator=generator) for k in range(tensors)}


def run_of(uri: str, given: Contents | None = None) -> Manifest:
    """A run with one snapshot of that."""
    return push(
        open_store(uri),
        given or contents(),
        name="made",
        begin=lambda what, total, there: lambda count: None,
        say=lambda text: None,
    )


def found_in(path: Path) -> Contents:
    return read(path, format_of(path, None))
