"""The drill's child processes: their lines as they come, and their end by pid."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from spotckpt.errors import DrillFailed

T = TypeVar("T")
_POLL_S = 0.02
_LAST_LINES = 20
_LAUNCH_S = 10.0


class Output:
    """Collects lines and finds one by pattern."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=1000)

    def add(self, line: str) -> None:
        """One more line."""
        self._lines.append(line)

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first line that matches."""
        return next((match for line in tuple(self._lines) if (match := re.search(pattern, line))), None)


class Child:
    """A process with its output on a pipe, line by line to `on_line` and whole to a file.

    It leads a session of its own: Ctrl-C at the terminal reaches the drill only, which then ends its children itself.
    What it leaves there when it ends is killed, as the end of a service or a container takes all along.
    """

    def __init__(self, name: str, *, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process: subprocess.Popen[str] | None = None
        self._failure = ""
        self._swept = False
        self._launched = threading.Event()
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 before the start."""
        return self._process.pid if self._process else 0

    def start(self, command: Sequence[str], *, environment: Mapping[str, str], on_line: Callable[[str], None]) -> None:
        """Starts it and a thread that reads it."""

        # In the thread, because a signal's exception comes up in the main thread: between a fork and the return of
        # Popen it would lose the pid, and with it the only way to end the process.
        def live() -> None:
            try:
                self._process = process = _popen(command, environment)
            except OSError as error:
                self._failure = error.strerror or str(error)
                return
            finally:
                self._launched.set()
            self._read(process, on_line)

        self._reader = threading.Thread(target=live, name=self.name, daemon=True)
        self._reader.start()
        self._launched.wait()
        if self._process is None:
            hint = "write the command as in a shell: spotckpt drill -- python train.py"
            raise DrillFailed(f"{command[0]} cannot be started: {self._failure}", hint=hint)

    def poll(self) -> int | None:
        """Its exit status as `Popen` has it, or None while it runs."""
        if self._process is None:
            return None
        status = self._process.poll()
        if status is not None:
            self._sweep(self._process.pid)
        return status

    def wait(self, timeout_s: float | None) -> int:
        """Its exit status, once it has ended and all it said is read.

        Raises:
            DrillFailed: it still runs after that time.
        """
        assert self._process is not None, "wait before start"
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DrillFailed(
                f"{self.name} still runs after {timeout_s:g} s; its last lines:\n{self.tail()}"
            ) from error
        self._sweep(self._process.pid)
        self._join()
        return status

    def kill(self) -> None:
        """SIGKILL to this process and those that it started in its session."""
        if self._reader is None:
            return
        self._launched.wait(_LAUNCH_S)
        if self._process is not None and self.poll() is None:
            self._sweep(self._process.pid)
            self._process.wait()
        self._join()

    def tail(self) -> str:
        """The last lines that it said."""
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        return "\n".join(lines[-_LAST_LINES:])

    def _sweep(self, group: int) -> None:
        """Once only: later the number may be somebody else's."""
        if not self._swept:
            self._swept = True
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def _join(self) -> None:
        # Bounded: a grandchild may hold the pipe open longer than its parent lived.
        if self._reader is not None:
            self._reader.join(timeout=2.0)

    def _read(self, process: subprocess.Popen[str], on_line: Callable[[str], None]) -> None:
        assert process.stdout is not None, "stdout is a pipe"
        with process.stdout, self.log_path.open("a") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                on_line(line.rstrip("\n"))


def _popen(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def wait_until(what: str, ask: Callable[[], T | None], timeout_s: float, *, alive: Iterable[Child] = ()) -> T:
    """The first answer that is true, asking again and again.

    Raises:
        DrillFailed: none came in time, or one of the processes that must be alive is not.
    """
    end = time.monotonic() + timeout_s
    while True:
        if answer := ask():
            return answer
        for child in alive:
            if child.poll() is not None:
                status = child.wait(None)  # what it said last is not read yet
                raise DrillFailed(
                    f"{child.name} ended with status {status} before {what}; its last lines:\n{child.tail()}"
                )
        if time.monotonic() > end:
            raise DrillFailed(f"no sign of {what} after {timeout_s:g} s")
        time.sleep(_POLL_S)
