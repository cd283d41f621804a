"""What is promised: ratios within one run on one machine, and whether a run kept them."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

TOLERANCE = 1 / 3
"""How far a short run on a busy machine may fall short before it counts as a failure."""


class Verdict(enum.Enum):
    """How a figure stands to its target."""

    MET = "met"
    SHORT = "short"
    FAILED = "failed"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Target:
    """A limit for one figure.

    Attributes:
        name: of the figure that a case gives.
        what: for the table.
        limit: the most, or the least, that it may be.
        at_least: which of both.
        short_limit: the limit of a short run, whose state is small: there fixed milliseconds weigh more. None: `limit`.
    """

    name: str
    what: str
    limit: float
    at_least: bool = False
    short_limit: float | None = None

    def judge(self, figure: float | None, *, quick: bool = False) -> Verdict:
        """`SHORT` misses the target by no more than `TOLERANCE`."""
        if figure is None or math.isnan(figure):
            return Verdict.NOT_MEASURED
        limit = self.limit_of(quick=quick)
        loose = limit / (1 + TOLERANCE) if self.at_least else limit * (1 + TOLERANCE)
        if figure >= limit if self.at_least else figure <= limit:
            return Verdict.MET
        return Verdict.SHORT if (figure >= loose if self.at_least else figure <= loose) else Verdict.FAILED

    def limit_of(self, *, quick: bool) -> float:
        """What a run of that kind is held to."""
        return self.short_limit if quick and self.short_limit is not None else self.limit

    def text(self, *, quick: bool) -> str:
        """`≤ 1.15`."""
        return f"{'≥' if self.at_least else '≤'} {self.limit_of(quick=quick):g}"


TARGETS = (
    Target("blocked", "trainer blocked per snapshot, synchronous, warm ÷ plain copy", 1.15, short_limit=2.0),
    Target("added", "wall time that staging adds to training, all cores busy ÷ plain copy", 1.2),
    Target("added-dcp", "wall time that a snapshot with its upload adds ÷ what dcp.async_save adds", 0.8),
    Target("overlapped", "the same as the first, overlapped, one core left free ÷ plain copy", 0.35),
    Target("gpu", "wall time that a snapshot adds on a GPU ÷ device-to-host copy", 0.1),
    Target("first", "first snapshot of a process, training ran before ÷ a warm one", 2.0),
    Target(
        "upload", "sealed → committed, discarding server: MB/s ÷ best raw client", 0.9, at_least=True, short_limit=0.7
    ),
    Target("upload-cpu", "sealed → committed: CPU seconds of the agent ÷ that client's", 1.2),
    Target("save-cpu-dcp", "whole save, CPU seconds of trainer and agent ÷ DCP FsspecWriter", 0.4),
    Target("save-cpu-boto3", "whole save, CPU seconds of trainer and agent ÷ torch.save + boto3", 0.4),
    Target(
        "restore", "restore, discarding server: MB/s ÷ raw parallel ranged GET", 0.85, at_least=True, short_limit=0.55
    ),
    Target("restore-s3fs", "restore: MB/s ÷ torch.load through s3fs", 2.5, at_least=True, short_limit=1.5),
    Target("restore-dcp", "restore: MB/s ÷ DCP load", 3.0, at_least=True, short_limit=2.2),
    Target("trainer-memory", "trainer's peak above state and slots, in states", 0.1),
    Target("agent-memory", "agent idle, resident MB", 60),
    Target("agent-cpu", "agent idle, % of a core, polling every second", 0.2),
    Target("agent-ready", "agent, seconds until it answers", 0.4),
    Target("frozen", "second upload of a model 95 % frozen, less 1 MiB ÷ the first", 0.05),
    Target("many", "10,000 tensors: seconds that saving adds to the copy", 0.3, short_limit=0.6),
    Target("log", "run.log, microseconds a point", 2.0),
    Target("log-memory", "the metric history in memory, bytes a point", 24.0),
    Target("help", "spotckpt --help, seconds", 0.25),
    Target("notices-grid", "replayed notices, a grid: mean loss ÷ that of who knows the future", 1.2),
    Target("notices-traces", "the same, random traces that nothing was tuned on", 1.2),
    Target("notices-lost", "the same, cases in which saving at once had committed more", 0.0),
    Target("throughput", "% of throughput lost, 50 ms steps, upload every 4th staging, all scaled down", 1.0),
)


def judged(figures: Mapping[str, float], *, quick: bool) -> dict[str, Verdict]:
    """Every target's verdict, by name.

    Raises:
        LookupError: a figure that no target knows.
    """
    if unknown := set(figures) - {target.name for target in TARGETS}:
        raise LookupError(f"no target is called {', '.join(sorted(unknown))}")
    return {target.name: target.judge(figures.get(target.name), quick=quick) for target in TARGETS}


def missed(figures: Mapping[str, float], *, quick: bool) -> list[str]:
    """The names of the targets that a run has failed."""
    return [name for name, verdict in judged(figures, quick=quick).items() if verdict is Verdict.FAILED]
