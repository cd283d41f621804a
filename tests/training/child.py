"""A process of a test that runs a script: a new interpreter, or (two seconds quicker) a fork of one that has torch."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.support.forkserver import PROCESSES
from tests.training.forked import run_script


class Child:
    """`python script options...` with that environment and a session of its own, its output in a file."""

    def __init__(
        self, script: Path, options: list[str], environment: Mapping[str, str], output: Path, *, exec_python: bool
    ) -> None:
        argv = [str(script), *options]
        output.touch()
        self._process: subprocess.Popen[bytes] | BaseProcess
        if exec_python:
            with output.open("wb") as both:
                self._process = subprocess.Popen(
                    [sys.executable, *argv], env=dict(environment), stdout=both, stderr=both, start_new_session=True
                )
        else:
            self._process = PROCESSES.Process(target=run_script, args=(argv, dict(environment), str(output)))
            self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, minus the signal's number if one killed it; None while it runs."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def wait(self, seconds: float) -> int | None:
        """The exit status; None if it still runs then."""
        if isinstance(self._process, BaseProcess):
            self._process.join(seconds)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        return self.status
