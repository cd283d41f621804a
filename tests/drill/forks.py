"""Trainers of drills as forks of a process that has torch imported: an import takes longer than such a training.

What nobody seeds is the same in all forks, unlike in new interpreters.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path

from tests.support.forkserver import PROCESSES
from tests.training.forked import run_script

CLIENT = Path(__file__).with_name("python_with_torch.py")


@contextmanager
def forks(folder: Path) -> Iterator[list[str]]:
    """The command to which a script and its arguments are added; it works as long as this is open."""
    path = folder / "forks"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        yield [sys.executable, "-S", "-E", str(CLIENT), str(path)]
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_train, args=(connection,), daemon=True).start()


def _train(connection: socket.socket) -> None:
    """Runs what a client asks for, until it has ended or the client is killed, which may be at any moment."""
    with connection, connection.makefile() as asked, suppress(ConnectionError):
        line = asked.readline()
        if not line:
            return
        process = PROCESSES.Process(target=run_as_new, args=json.loads(line))
        process.start()
        if process.sentinel not in wait([process.sentinel, connection]):
            process.kill()
        process.join()
        connection.sendall(f"{process.exitcode}\n".encode())


def run_as_new(argv: list[str], environment: dict[str, str], folder: str, output: str) -> None:
    os.chdir(folder)
    run_script(argv, environment, output)
