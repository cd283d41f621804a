"""What is done to a training and when: pure, and the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
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
    def ends_life(self) -> bool:
        """Whether the training has to be started again."""
        return self.kind != "kill-agent"

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
        raise DrillFailed(
            f"the training has {num_steps} boundaries: too few for {count} interruptions, of {LEAST_STEPS} each",
            hint=f"give it more steps, or fewer interruptions: --interruptions {max(1, num_steps // LEAST_STEPS)}",
        )
    chance = random.Random(seed)
    chosen = [kind for _ in range(0, count, len(kinds)) for kind in chance.sample(kinds, len(kinds))][:count]
    edges = [num_steps * number // count for number in range(count + 1)]
    return [
        _place(kind, after, before, chance) for kind, after, before in zip(chosen, edges[:-1], edges[1:], strict=True)
    ]


def _place(kind: Kind, after: int, before: int, chance: random.Random) -> Interruption:
    """Somewhere between two boundaries, so that a snapshot lies before it and steps are to be done again."""
    first = chance.randint(after + 1, before - 5)
    if kind in ("notice", "sigterm"):
        return Interruption(kind, hold=chance.randint(first, before - 1))
    if kind == "kill-upload":  # a copy beside the training is sealed at the boundary after the next
        second = chance.randint(first + 2, before - 3)
        return Interruption(kind, hold=second + 2, saves=(first, second), wait=second)
    return Interruption(kind, hold=chance.randint(first + 2, before - 1), saves=(first,))
