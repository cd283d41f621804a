"""A child process that holds an object and does what it is told, one call at a time."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class WorkerFailed(Exception):
    """What went wrong in the child, with its traceback."""


class Worker:
    """Makes an object in a new process and calls its methods there.

    Args:
        make: `module:name` of what makes it, imported in the child only.
        arguments: for it.
        environment: added to ours.
        log: what the child writes to standard error.
        named: further arguments.
    """

    def __init__(self, make: str, *arguments: Any, environment: Mapping[str, str], log: Path, **named: Any) -> None:
        self._log = log
        self._pipe, there = multiprocessing.Pipe()
        with there, log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.worker", str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[there.fileno()],
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is ours, who hang up
            )
        try:
            self.call(make, *arguments, **named)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """What the method returns.

        Raises:
            WorkerFailed: it raised, or the process is gone.
        """
        try:
            self._pipe.send((method, arguments, named))
            failed, value = self._pipe.recv()
        except (EOFError, OSError):
            last = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise WorkerFailed(f"the process is gone; its last lines:\n{last}") from None
        if failed:
            raise WorkerFailed(value)
        return value

    def close(self) -> None:
        """Ends the process; one that does not end by itself is killed."""
        self._pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection) -> None:
    make, arguments, named = pipe.recv()
    module, _, name = make.partition(":")
    held = _answered(pipe, lambda: getattr(importlib.import_module(module), name)(*arguments, **named), told=False)
    while True:
        try:
            method, arguments, named = pipe.recv()
        except EOFError:
            break
        _answered(pipe, lambda: getattr(held, method)(*arguments, **named), told=True)  # noqa: B023  called at once
    if (close := getattr(held, "close", None)) is not None:
        close()


def _answered(pipe: Connection, call: Any, *, told: bool) -> Any:
    try:
        value = call()
    except BaseException:  # noqa: BLE001  the edge: told to the parent, who raises it
        pipe.send((True, traceback.format_exc()))
        return None
    pipe.send((False, value if told else None))
    return value


if __name__ == "__main__":
    with Connection(int(sys.argv[1])) as connected:
        _serve(connected)
