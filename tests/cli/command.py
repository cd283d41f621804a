"""Runs `spotckpt` as a user does: another process, with a pipe or a terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from spotckpt.cli.main import main

TIMEOUT_S = 120


@dataclass
class Done:
    status: int
    out: str
    err: str


def spotckpt(*arguments: str, **environment: str) -> Done:
    """With pipes for standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "spotckpt", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def in_process(*arguments: str) -> Done:
    """The same without the second that a new interpreter takes."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline=""), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(arguments)
    out.flush()
    return Done(status, out.buffer.getvalue().decode(), err.getvalue())  # type: ignore[attr-defined]


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_screen(*arguments: str, columns: int) -> Done:
    """Standard output as on a terminal of that width, without colours and without the second of a new interpreter."""
    out, err = _Screen(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in {"COLUMNS": str(columns), "TERM": "xterm"}.items():
            patch.setenv(name, value)
        status = main(arguments)
    return Done(status, plain(out.getvalue()), err.getvalue())


def plain(text: str) -> str:
    """Without colours, and with the line ends of a file. (On a terminal called dumb rich takes 80 for its width.)"""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n")


def on_terminal(*arguments: str, columns: int = 100, **environment: str) -> Done:
    """With a terminal of that width for everything; both outputs come in `out`."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "spotckpt", *arguments],
        # COLUMNS, which a test runner may set, would count for more than the terminal's own width
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"}
        | {"TERM": "xterm-256color", **environment},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    pieces = []
    while piece := _read(leader):
        pieces.append(piece)
    os.close(leader)
    return Done(process.wait(TIMEOUT_S), b"".join(pieces).decode(), "")


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # EIO: the last one who had the terminal has closed it
        return b""
