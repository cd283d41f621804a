"""Checkpoints for PyTorch training on spot instances.

    @spotckpt.resumable("s3://bucket/run", every="10min")
    def train(run): ...

The names below are imported when they are first used, so that `import spotckpt` does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spotckpt.errors import Interrupted, SpotckptError, Superseded
    from spotckpt.training.load import load
    from spotckpt.training.resumable import add_arguments, open_run, resumable
    from spotckpt.training.run import Run

__version__ = "0.1.0"

_HOMES = {
    "Interrupted": "spotckpt.errors",
    "Run": "spotckpt.training.run",
    "SpotckptError": "spotckpt.errors",
    "Superseded": "spotckpt.errors",
    "add_arguments": "spotckpt.training.resumable",
    "load": "spotckpt.training.load",
    "open_run": "spotckpt.training.resumable",
    "resumable": "spotckpt.training.resumable",
}

__all__ = ["Interrupted", "Run", "SpotckptError", "Superseded", "add_arguments", "load", "open_run", "resumable"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spotckpt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
