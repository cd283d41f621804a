"""Places in a program's loops, by which a resumed program knows what is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spotckpt.errors import MismatchError


@dataclass(frozen=True, order=True)
class Place:
    """A place between loops or at the start of one; ordered as the program passes through.

    Attributes:
        loop: how many `epochs` loops began.
        epoch: of the newest of them.
        over: whether that one is over.
        calls: how many `batches` and `steps` loops ended in this epoch, or outside of epochs since.
    """

    loop: int = 0
    epoch: int = 0
    over: bool = False
    calls: int = 0

    @property
    def slot(self) -> str:
        """The place without the epoch: where the same loader is met in each epoch."""
        return f"{self.loop}.{int(self.over)}.{self.calls}"

    def __str__(self) -> str:
        where = f"after epochs loop {self.loop}" if self.over else f"epoch {self.epoch}"
        return f"{where}, loop {self.calls + 1}"


class Target:
    """A loaded position.

    One that was imported from another program's checkpoint says `epoch` and `step` only; the first loop tells which of
    them counts here. (A loop over batches without epochs begins anew.)
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state
        self.place = Place(**state["place"])
        self.left_by: str = state["left_by"]
        self.active: Mapping[str, Any] | None = state["active"]
        self.ended_steps: dict[str, int] | None = state["ended_steps"]

    @property
    def is_imported(self) -> bool:
        """Whether only its epoch and step are known, and no loop has told yet which counts."""
        return self.state.get("imported") is not None

    def in_epochs(self) -> Target:
        """The same, where the first loop is over epochs."""
        if not self.is_imported:
            return self
        imported = self.state["imported"]
        place = {"loop": 1, "epoch": int(imported["epoch"]), "over": False, "calls": 0}
        return Target({**self.state, "place": place, "imported": None})

    def in_steps(self) -> Target:
        """The same, where the first loop is over steps."""
        if not self.is_imported:
            return self
        imported = self.state["imported"]
        active = {"kind": "steps", "count": int(imported["step"]), "start": None, "cold": True}
        return Target({**self.state, "active": active, "imported": None})

    def count(self, kind: str) -> int:
        """How much of the active loop was consumed.

        Raises:
            MismatchError: that loop is of the other kind.
        """
        if self.active is None:
            return 0
        if self.active["kind"] != kind:
            raise MismatchError(
                f"data position: the snapshot was taken in run.{self.active['kind']}, here is run.{kind}",
                hint="resume with the loops that the snapshot was taken in, or start afresh with @start",
            )
        return int(self.active["count"])
