"""Where a training runs: recorded in every manifest."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spotckpt

GIT_TIMEOUT_S = 2.0
_PRODUCT_NAME = Path("/sys/devices/virtual/dmi/id/product_name")  # the instance type, on EC2's Nitro machines


def describe_environment() -> dict[str, Any]:
    """Versions, machine, devices and code revision, as plain JSON values."""
    return {
        "spotckpt": spotckpt.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "host": platform.node(),
        "instance_type": _product_name(),
        "devices": _devices(),
        "num_threads": torch.get_num_threads(),
        "code_revision": code_revision(),
    }


def code_revision() -> str:
    """The commit of the main script's directory; empty when there is none to be had cheaply."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    directory = Path(main).resolve().parent if main else Path.cwd()
    command = ["git", "-C", str(directory), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _product_name() -> str:
    try:
        return _PRODUCT_NAME.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
