"""What every source of news about this machine yields."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["spot", "rebalance", "maintenance", "lifecycle", "signal", "manual"]
Action = Literal["terminate", "stop", "hibernate", "rebalance"]

AFTERMATH_S = 300.0
"""How long a notice stays in force after its deadline (or after it was first seen, if that is unknown)."""


@dataclass(frozen=True)
class Notice:
    """The machine, or the agent on it, will go.

    Attributes:
        kind: where the news comes from.
        action: what will happen; `rebalance` is a hint that more than usual may happen.
        deadline: when, in seconds of the boot-time clock; None if nobody says.
        id: the same for every sight of the same news.
        raw: what the source said.
    """

    kind: Kind
    action: Action
    deadline: float | None
    id: str
    raw: str = ""

    @property
    def is_final(self) -> bool:
        """Whether the training must stop, not only take a snapshot."""
        return self.action != "rebalance"

    def seconds_left(self, now: float) -> float | None:
        """Never negative; None if the deadline is unknown."""
        return None if self.deadline is None else max(0.0, self.deadline - now)

    def in_force(self, now: float, *, first_seen: float) -> bool:
        """Whether it still keeps trainings from starting (a final one) or asks for a snapshot (a hint).

        A machine that is still there long after its end was announced is not going: a `time` in the past can stay in
        the metadata.
        """
        return now < (first_seen if self.deadline is None else self.deadline) + AFTERMATH_S

    def describe(self, now: float) -> str:
        """For people: `spot terminate in 97 s`."""
        left = self.seconds_left(now)
        when = "at an unknown time" if left is None else f"in {left:.0f} s"
        return f"{self.kind} {self.action}" + (f" {when}" if self.is_final else " recommendation")


def most_urgent(notices: Iterable[Notice]) -> Notice | None:
    """The final one with the earliest deadline (an unknown one counts as now); without any, the first hint."""

    def urgency(notice: Notice) -> tuple[bool, float]:
        return (not notice.is_final, -math.inf if notice.deadline is None else notice.deadline)

    return min(notices, key=urgency, default=None)
