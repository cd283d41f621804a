"""Small tmpfs mounts, for disks that are full: root only, and skipped elsewhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def tmpfs(path: Path, *options: str) -> Iterator[Path]:
    """Mounts a tmpfs at `path`, as in `tmpfs(path, "size=64m", "nr_inodes=10")`."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs takes root")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(["mode=0700", *options]), "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, *options: str) -> None:
    """Changes the mount's options, as in `remount(path, "ro")`."""
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(path)], check=True, capture_output=True)


def free_bytes(path: Path) -> int:
    """What is left there."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
