"""What is done to a training and when: pure, and the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from spotckpt.errors import DrillFailed

Kind = Literal["notice", "sigterm", "kill-trainer", "kill-agent", "kill-upload"]
KINDS: tuple[Kind, ...] = get_args(Kind)

LEAST_STEPS = 6
"""Boundaries that an interruption needs: two snapshots, of which the second may be lost, and steps to be done again."""


@dataclass(frozen=True)
class Interruption:
    """One event.

    Attributes:
        kind: `kill-upload` kills trainer and agent while a snapshot is being sent, and erases their disk.
        saves: snapshots are asked for at these boundaries.
        wait: the trainer is held here until the first of them is committed; 0 for no wait.
        hold: the trainer is held here when it happens.
    """

    kind: Kind
    hold: int
    saves: tuple[int, ...] = ()
    wait: int = 0

    @property
    def first(self) -> int:
        """The first boundary that has a part in it."""
        return self.saves[0] if self.saves else self.hold

    @property
    def ends_life(self) -> bool:
        """Whether the training has to be started again."""
        return self.kind != "kill-agent"

    @property
    def kills(self) -> bool:
        """Whether the training has no chance to end by itself."""
        return self.kind in ("kill-trainer", "kill-upload")

    @property
    def keeps_disk(self) -> bool:
        """Whether it is started again on the same machine."""
        return self.kind in ("sigterm", "kill-trainer")


def plan(num_steps: int, kinds: Sequence[Kind], *, count: int, seed: int) -> list[Interruption]:
    """Spreads the interruptions over a training of that many boundaries, at places and in an order by chance.

    Raises:
        DrillFailed: it has too few.
    """
    if num_steps < LEAST_STEPS * count:
        possible = num_steps // LEAST_STEPS
        fewer = f", or fewer interruptions: --interruptions {possible}" if possible else ""
        raise DrillFailed(
            f"the training has {num_steps} boundaries: an interruption needs {LEAST_STEPS}, and {count} shall come",
            hint=f"give it more steps{fewer}",
        )
    chance = random.Random(seed)
    chosen = [kind for _ in range(0, count, len(kinds)) for kind in chance.sample(kinds, len(kinds))][:count]
    edges = [num_steps * number // count for number in range(count + 1)]
    return [
        _place(kind, after, before, chance) for kind, after, before in zip(chosen, edges[:-1], edges[1:], strict=True)
    ]


def put_off(pending: Sequence[Interruption], *, after: int) -> list[Interruption]:
    """The same, later where the training has come further than was planned, as it may under a notice.

    Args:
        pending: in order.
        after: the boundary that the training has passed.
    """
    later: list[Interruption] = []
    for one in pending:
        by = max(0, after + 1 - one.first)
        saves = tuple(step + by for step in one.saves)
        later.append(replace(one, hold=one.hold + by, saves=saves, wait=one.wait and one.wait + by))
        after = later[-1].hold
    return later


def _place(kind: Kind, after: int, before: int, chance: random.Random) -> Interruption:
    """Somewhere between two boundaries, so that a snapshot lies before it and steps are to be done again."""
    first = chance.randint(after + 1, before - 5)
    if kind in ("notice", "sigterm"):
        return Interruption(kind, hold=chance.randint(first, before - 1))
    if kind == "kill-upload":  # a copy beside the training is sealed at the boundary after the next
        second = chance.randint(first + 2, before - 3)
        return Interruption(kind, hold=second + 2, saves=(first, second), wait=second)
    return Interruption(kind, hold=chance.randint(first + 2, before - 1), saves=(first,))
