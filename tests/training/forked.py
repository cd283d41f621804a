"""What a forked trainer runs. Preloaded by the fork server: importing torch is what costs in a test of a second."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import torch

import spotckpt.training.resumable  # noqa: F401

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/training/scripts/train.py"


def run_script(argv: list[str], environment: dict[str, str], output: str) -> None:
    """Becomes `python argv...` with that environment, output and a session of its own."""
    os.setsid()
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(fd, stream)
    os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # else a loader's workers came from a fork server of their own
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except KeyboardInterrupt:  # as the interpreter does at its top
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _warm_up() -> None:
    """The first step of an optimizer imports another second's worth of torch."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.SGD([parameter], lr=0.1).step()


if "forkserver" in " ".join(sys.orig_argv):
    torch.set_num_threads(1)
    _warm_up()
