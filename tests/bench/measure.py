"""Samples and series: wall and CPU seconds and memory of processes, read from outside of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One measurement.

    Attributes:
        wall_s: elapsed.
        cpu_s: user and system time of the processes that do the work; a server's is not in it.
        extra_bytes: how far their resident memory rose above what it was before.
    """

    wall_s: float
    cpu_s: float = 0.0
    extra_bytes: int = 0


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of one figure."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


class Series(list[Sample]):
    """Samples of one contender."""

    @property
    def wall(self) -> Spread:
        """Seconds."""
        return Spread.of([sample.wall_s for sample in self])

    @property
    def cpu(self) -> Spread:
        """Seconds."""
        return Spread.of([sample.cpu_s for sample in self])

    @property
    def extra(self) -> Spread:
        """Bytes."""
        return Spread.of([sample.extra_bytes for sample in self])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads, ended ones too, to the nanosecond: clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_bytes(pid: int, field: str) -> int:
    """A field of `/proc/PID/status`: VmRSS, VmHWM, RssAnon."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"process {pid} has no {field}")


class Meter:
    """Watches processes from its making to each `read`."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
        self._resident = sum(memory_bytes(pid, "VmRSS") for pid in pids)
        self._cpu = sum(cpu_seconds(pid) for pid in pids)
        self._start = time.perf_counter()

    def read(self, wall_s: float | None = None) -> Sample:
        """What was used since; `wall_s` where somebody else took the time."""
        elapsed = time.perf_counter() - self._start
        cpu = sum(cpu_seconds(pid) for pid in self._pids) - self._cpu
        peak = sum(memory_bytes(pid, "VmHWM") for pid in self._pids)
        return Sample(elapsed if wall_s is None else wall_s, cpu, max(0, peak - self._resident))


def interleaved(contenders: Mapping[str, Callable[[], Sample]], repeats: int) -> dict[str, Series]:
    """Measures all in turns, each round beginning with another one."""
    found = {name: Series() for name in contenders}
    names = list(contenders)
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(contenders[name]())
    return found
