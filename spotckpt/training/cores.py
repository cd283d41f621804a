"""How many cores this process may use, and whether the training leaves one of them idle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch


def has_core_to_spare() -> bool:
    """Whether torch computes with fewer threads than there are cores; a copy meanwhile costs nothing only then."""
    return torch.get_num_threads() < cores()


def cores(cgroups: str | None = None, root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores of this process's affinity and of every quota above it, at least 1.

    Args:
        cgroups: `/proc/self/cgroup`'s text.
        root: where the controllers are mounted.
    """
    text = Path("/proc/self/cgroup").read_text() if cgroups is None else cgroups
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(text, root)])))


def _quotas(cgroups: str, root: Path) -> Iterator[float]:
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits(root, path, ("cpu.max",))
        elif "cpu" in controllers.split(","):
            yield from _limits(root / "cpu", path, ("cpu.cfs_quota_us", "cpu.cfs_period_us"))


def _limits(root: Path, path: str, files: tuple[str, ...]) -> Iterator[float]:
    here = root / path.lstrip("/")
    for group in (here, *here.parents):
        try:
            quota, period = " ".join((group / name).read_text() for name in files).split()
            if quota not in ("max", "-1"):
                yield float(quota) / float(period)
        except (OSError, ValueError):
            pass  # the root group has no quota; in a container the path is of the host's tree
        if group == root:
            return
