"""The kernel locks that make an agent the only one of its runtime directory and of its spool.

A lock ends with the process, however that ends, and no trainer ever holds one: its forked workers would keep it.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from spotckpt.errors import AgentError

LOCK_NAME = "agent.lock"


class Held(AgentError):
    """Another process holds the lock."""


@dataclass(frozen=True)
class LockHolder:
    """What the holder wrote about itself."""

    pid: int
    socket: Path


def acquire(directory: Path, *, pid: int, socket: Path) -> int:
    """Takes the directory's lock and says who holds it.

    Returns:
        The descriptor; the lock lasts as long as it, or a copy of it in a forked child, is open.

    Raises:
        Held: another process has it.
    """
    fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        holder = read_holder(directory)
        who = f"process {holder.pid}" if holder else "another process"
        raise Held(f"{who} is the agent of {directory}", hint="use it, or end it first") from None
    introduce(fd, pid=pid, socket=socket)
    return fd


def introduce(fd: int, *, pid: int, socket: Path) -> None:
    """Writes who holds the lock."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps({"pid": pid, "socket": str(socket)}).encode(), 0)


def read_holder(directory: Path) -> LockHolder | None:
    """Who took the lock last; None if nobody ever did, or it is being written."""
    try:
        fields = json.loads((directory / LOCK_NAME).read_bytes())
        return LockHolder(int(fields["pid"]), Path(fields["socket"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
