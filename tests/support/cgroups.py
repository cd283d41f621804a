"""A control group of our own with a limit on memory; skipped where none can be made."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """The group; `enter` is for a child process, before it becomes another program."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._peak = path / ("memory.peak" if (path / "memory.max").exists() else "memory.max_usage_in_bytes")
        self._events = path / ("memory.events" if (path / "memory.max").exists() else "memory.oom_control")

    def enter(self) -> None:
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def peak_bytes(self) -> int:
        """Most that was ever charged, page cache included."""
        return int(self._peak.read_text()) if self._peak.exists() else 0

    @property
    def killed(self) -> int:
        """Processes that the kernel killed for their memory."""
        events = dict(line.split() for line in self._events.read_text().splitlines())
        return int(events["oom_kill"])


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A group below this process's own."""
    made = _make(limit_bytes)
    try:
        yield MemoryGroup(made)
    finally:
        _remove(made)


def _make(limit_bytes: int) -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root, limit = (_ROOT, "memory.max") if not controllers else (_ROOT / "memory", "memory.limit_in_bytes")
        if controllers and "memory" not in controllers.split(","):
            continue
        made = root / path.lstrip("/") / f"spotckpt-{uuid.uuid4().hex[:8]}"
        try:
            made.mkdir()
            (made / limit).write_text(str(limit_bytes))
        except OSError:
            with contextlib.suppress(OSError):
                made.rmdir()
            continue
        return made
    pytest.skip("no control group with a limit on memory can be made here (root, and a memory controller to hand on)")


def _remove(made: Path) -> None:
    for number in (made / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(number), 9)
    for _ in range(100):
        with contextlib.suppress(OSError):
            made.rmdir()
            return
        time.sleep(0.05)
