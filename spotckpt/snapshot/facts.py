"""What a trainer says of a snapshot when it hands it over, and the manifest repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from spotckpt.snapshot.fields import (
    Fields,
    number_from_json,
    number_to_json,
    numbers_from_json,
    numbers_to_json,
)
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.metrics import Best

Reason = Literal["periodic", "notice", "manual", "best", "final", "fork"]
REASONS: tuple[str, ...] = get_args(Reason)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The fields that `Staged` and `Manifest` share. Times are seconds since the epoch by the writer's clock.

    Attributes:
        step: boundaries counted. epoch: the epoch it was taken in, -1 outside epochs.
        reason: why it was taken.
        created: when it was captured.
        world_size: ranks, each with one part.
        finished: the run was over; a restart has nothing to do.
        data_bytes: tensor bytes.
        latest: the last value of each metric, `set/name`.
        best: `set/name:min` and `set/name:max`.
        evaluated: metrics measured on exactly these weights.
        arguments, environment: of the run, JSON values, for showing.
        timings: seconds by phase.
    """

    step: int
    epoch: int
    reason: str
    created: float
    world_size: int = 1
    finished: bool = False
    data_bytes: int = 0
    latest: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, Best] = field(default_factory=dict)
    evaluated: Mapping[str, float] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """These fields alone, by name."""
        return {name: getattr(self, name) for name in _NAMES}

    def facts_to_json(self) -> dict[str, Any]:
        """As they stand in a record."""
        return {
            **self.facts(),
            "latest": numbers_to_json(self.latest),
            "best": _bests_to_json(self.best),
            "evaluated": numbers_to_json(self.evaluated),
            "arguments": dict(self.arguments),
            "environment": dict(self.environment),
            "timings": numbers_to_json(self.timings),
        }


_NAMES = tuple(Facts.__dataclass_fields__)


def facts_from(fields: Fields, snapshot: SnapshotId) -> dict[str, Any]:
    """The inverse of `facts_to_json`: arguments for a `Facts` of that snapshot."""
    step, reason = fields.count("step"), fields.text("reason")
    if step != snapshot.step or reason not in REASONS:
        raise fields.corrupt(f"step {step} or reason {reason!r} does not belong to {snapshot}")
    return {
        "step": step,
        "epoch": fields.count("epoch", least=-1),
        "reason": reason,
        "created": fields.seconds("created"),
        "world_size": fields.count("world_size", least=1),
        "finished": fields.flag("finished"),
        "data_bytes": fields.count("data_bytes"),
        "latest": numbers_from_json("latest", fields),
        "best": _bests_from_json(fields),
        "evaluated": numbers_from_json("evaluated", fields),
        "arguments": fields.mapping("arguments"),
        "environment": fields.mapping("environment"),
        "timings": numbers_from_json("timings", fields),
    }


def _bests_to_json(bests: Mapping[str, Best]) -> dict[str, Any]:
    return {
        name: {"value": number_to_json(best.value), "step": best.step, "epoch": best.epoch}
        for name, best in bests.items()
    }


def _bests_from_json(fields: Fields) -> dict[str, Best]:
    found = {}
    for metric, body in fields.mapping("best").items():
        best = Fields(body, fields.key)
        found[metric] = Best(
            number_from_json(best.body.get("value"), best), best.count("step"), best.count("epoch", least=-1)
        )
    return found
