"""How much may be staged where. A tmpfs's free space is no promise: its pages are memory."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spotckpt.agent.paths import make_private_dir
from spotckpt.errors import AgentError

_DISK_RESERVE_BYTES = 64 << 20
_GRAIN_BYTES = 4 << 20
_ESCAPED = re.compile(rb"\\([0-7]{3})")
"""In /proc/mounts: blanks, tabs, newlines and backslashes of a path."""
_LIMITS = {errno.EFBIG: " (see ulimit -f)", errno.EMFILE: " (see ulimit -n)"}


def round_up(size_bytes: int) -> int:
    """To whole grains, so that a state that grows a little keeps its file."""
    return max(1, -(-size_bytes // _GRAIN_BYTES)) * _GRAIN_BYTES


@dataclass(frozen=True)
class Shortage:
    """Why a slot has no place in a directory.

    Attributes:
        directory: where it was to be.
        missing_bytes: how many more would be needed there, at least 1.
        why: for the user.
    """

    directory: Path
    missing_bytes: int
    why: str

    def __str__(self) -> str:
        return f"{self.directory}: {self.why}"


def free_bytes(directory: Path, *, reserve_bytes: int) -> int:
    """How many bytes more files of the directory may take; may be negative.

    Args:
        directory: on tmpfs or on disk.
        reserve_bytes: memory to leave free; on disk a fixed 64 MiB are left.
    """
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if is_memory(directory):
        return min(free, memory_available() - reserve_bytes)
    return free - _DISK_RESERVE_BYTES


def allocate(path: Path, size_bytes: int) -> None:
    """Makes the file at least that long with pages that exist, keeping what it has.

    Never shrinks a file: a trainer may have it mapped, and would die of SIGBUS.

    Raises:
        OSError: there is no room after all; a file that was not there before is not there.
    """
    is_new = not path.exists()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError:
        if is_new:
            path.unlink()
        raise
    finally:
        os.close(fd)


def shortage(path: Path, size_bytes: int, *, reserve_bytes: int) -> Shortage | None:
    """Makes the file that long, its directory too; or says why that cannot be."""
    have = free = 0
    try:
        make_private_dir(path.parent)
        have = path.stat().st_size if path.exists() else 0
        free = free_bytes(path.parent, reserve_bytes=reserve_bytes)
        if free >= size_bytes - have:
            allocate(path, size_bytes)
            return None
        why = f"{max(free, 0)} bytes are free for it"
    except AgentError as error:  # a directory that cannot be used has no room
        why = error.message
    except OSError as error:
        why = f"{os.strerror(error.errno or 0)}{_LIMITS.get(error.errno or 0, '')}"
    return Shortage(path.parent, max(size_bytes - have - max(free, 0), 1), why)


def is_memory(directory: Path) -> bool:
    """Whether files there are memory."""
    return _filesystem(directory) in ("tmpfs", "ramfs")


def memory_available() -> int:
    """Bytes that this process may still take: the machine's MemAvailable and the room below every cgroup limit."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    return min([machine, *_cgroup_headrooms()])


def _cgroup_headrooms() -> Iterator[int]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _headrooms(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            yield from _headrooms(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _headrooms(root: Path, path: str, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    here = root / path.lstrip("/")
    for group in (here, *here.parents):
        if root not in (group, *group.parents):
            return
        try:
            most = (group / limit).read_text().strip()
            if most != "max":
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield int(most) - int((group / used).read_text()) + int(stat.get(reclaimable, 0))
        except (OSError, ValueError):
            continue  # the root group has no limit; in a container the path is of the host's tree


def _filesystem(directory: Path) -> str:
    """The type of the mount that holds the directory; the longest mount point that is a parent of it, the last one."""
    real, best, found = directory.resolve(), -1, ""
    for line in Path("/proc/self/mounts").read_bytes().rstrip(b"\n").split(b"\n"):
        _, point, kind, *_ = line.split(b" ")
        mount = Path(os.fsdecode(_ESCAPED.sub(lambda code: bytes([int(code[1], 8)]), point)))
        if mount in (real, *real.parents) and len(mount.parts) >= best:
            best, found = len(mount.parts), kind.decode()
    return found
