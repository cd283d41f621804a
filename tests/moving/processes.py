"""The command line in a process of its own, that can be killed; a fork of one that has torch imported."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.support.forkserver import PROCESSES


def start(said: Path, *arguments: str) -> BaseProcess:
    """Runs `spotckpt`; what it prints goes to that file, its exit status is that of the process."""
    process = PROCESSES.Process(target=_run, args=(arguments, dict(os.environ), str(said)))
    process.start()
    return process


def on_terminal(*arguments: str, columns: int) -> str:
    """Runs `spotckpt` on a terminal of that width; what it shows there."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    process = start(Path(os.ttyname(follower)), *arguments)
    shown = b""
    while (there := select.select([leader], [], [], 0.05)[0]) or process.is_alive():
        shown += os.read(leader, 65536) if there else b""
    os.close(follower)
    os.close(leader)
    return shown.decode()


def _run(arguments: tuple[str, ...], environment: dict[str, str], said: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(said, "w") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from spotckpt.cli.main import main

    status = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
