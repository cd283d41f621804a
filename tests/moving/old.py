"""Files as pytorchcheckpoint 0.0.5 writes them: its object, pickled whole, in either of torch's formats."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def old_file(path: Path, attributes: dict[str, Any], *, legacy: bool = False) -> None:
    """Saves an object of that class; the class is gone afterwards."""
    handler = type("CheckpointHandler", (), {"__module__": "pytorchcheckpoint.checkpoint"})
    made = handler()
    vars(made).update(attributes)
    module = ModuleType("pytorchcheckpoint.checkpoint")
    module.CheckpointHandler = handler  # type: ignore[attr-defined]
    sys.modules.update({"pytorchcheckpoint": ModuleType("pytorchcheckpoint"), module.__name__: module})
    try:
        torch.save(made, path, _use_new_zipfile_serialization=not legacy)
    finally:
        del sys.modules["pytorchcheckpoint"], sys.modules[module.__name__]
