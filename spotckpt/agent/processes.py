"""Which process is meant, across reboots and reused pids: pid, start time, boot id and PID namespace."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """The kernel's name for this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> str:
    """The namespace in which this process's pids mean something, as `pid:[4026531836]`."""
    return str(Path("/proc/self/ns/pid").readlink())


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if there is none, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the command's name, in parentheses, may itself hold blanks and parentheses
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(pid: int, start: int) -> bool:
    """Whether that very process still runs."""
    return start_time(pid) == start


@dataclass(frozen=True)
class Process:
    """One life of one pid on this boot and in this PID namespace."""

    pid: int
    start: int

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls(os.getpid(), start_time(os.getpid()) or 0)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return is_alive(self.pid, self.start)

    def open_pidfd(self) -> int | None:
        """A descriptor that becomes readable when the process ends; None if it has ended.

        The start time is compared after the descriptor is there: it cannot be of a later process with the same pid.
        """
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive:
            return fd
        os.close(fd)
        return None
