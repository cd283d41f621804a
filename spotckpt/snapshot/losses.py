"""What an interruption cost: how far a training had come, less what was committed of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from spotckpt.snapshot.fields import Fields


@dataclass(frozen=True)
class Reached:
    """How far an attempt has come, as a heartbeat tells it.

    Attributes:
        step: of its last boundary.
        unsaved_s: seconds of training between that and the attempt's last committed snapshot, or its first boundary.
    """

    step: int
    unsaved_s: float

    def to_json(self) -> dict[str, Any]:
        """As it stands in a heartbeat."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Fields) -> Reached:
        """Reads it."""
        return cls(fields.count("step"), fields.seconds("unsaved_s"))

    def lost(self, base_step: int) -> Lost:
        """What is trained again by whoever goes on from that step."""
        steps = max(0, self.step - base_step)
        return Lost(steps, self.unsaved_s if steps else 0.0)


@dataclass(frozen=True)
class Lost:
    """Work that is trained again; at least so much, as the last seconds before a crash are not told."""

    steps: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Fields) -> Lost:
        """Reads it."""
        return cls(fields.count("steps"), fields.seconds("seconds"))
