"""What a trainer hands to an agent beside the bytes: all that the manifest and the part will need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any

from spotckpt.snapshot.envelope import unwrap, wrap
from spotckpt.snapshot.fields import Fields, numbers_from_json, numbers_to_json
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import REASONS, bests_from_json, bests_to_json
from spotckpt.snapshot.metrics import Best
from spotckpt.snapshot.pack import Layout, TensorSpec, kinds_of, layout
from spotckpt.snapshot.part import MAX_PART_BYTES, Chunk, TensorEntry, specs_from


def table(specs: Sequence[TensorSpec], plan: Layout) -> tuple[TensorEntry, ...]:
    """The tensor table of a data section that is laid out so: each tensor one chunk of pack 0, without a digest."""
    if not specs:
        return ()
    names, dtypes, shapes, strides = zip(*specs, strict=True)
    sizes = [kind.size_bytes for kind in kinds_of(specs)]
    starts = [(0,) * len(shape) for shape in shapes]
    chunks = zip(map(Chunk, repeat(0), plan.offsets, sizes, starts, shapes), strict=True)
    return tuple(map(TensorEntry, names, dtypes, shapes, strides, chunks))


@dataclass(frozen=True)
class Staged:
    """A snapshot in the spool. The attributes that a `Manifest` has too mean the same there.

    Attributes:
        id: the snapshot's id, as the agent granted it.
        tree: the encoded state tree.
        specs: the tensors; where they lie follows from all of them, by `layout`.
        data_bytes: length of the data section.
    """

    id: str
    step: int
    epoch: int
    reason: str
    created: float
    tree: Any
    specs: tuple[TensorSpec, ...]
    data_bytes: int
    finished: bool = False
    world_size: int = 1
    latest: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, Best] = field(default_factory=dict)
    evaluated: Mapping[str, float] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def snapshot(self) -> SnapshotId:
        """`id`, parsed."""
        return SnapshotId.parse(self.id)

    def layout(self) -> Layout:
        """Where the tensors lie and what precedes them, computed again from the table."""
        return self._layout

    @cached_property
    def _layout(self) -> Layout:
        return layout(self.specs)

    @cached_property
    def tensors(self) -> tuple[TensorEntry, ...]:
        """The table, each tensor one chunk of pack 0, its offset counted from the start of the data section."""
        return table(self.specs, self.layout())

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        return wrap(
            {
                "id": self.id,
                "step": self.step,
                "epoch": self.epoch,
                "reason": self.reason,
                "created": self.created,
                "finished": self.finished,
                "world_size": self.world_size,
                "data_bytes": self.data_bytes,
                "latest": numbers_to_json(self.latest),
                "best": bests_to_json(self.best),
                "evaluated": numbers_to_json(self.evaluated),
                "arguments": dict(self.arguments),
                "environment": dict(self.environment),
                "timings": numbers_to_json(self.timings),
                "tree": self.tree,
                "specs": self.specs,
            },
            limit_bytes=MAX_PART_BYTES,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str = "staged.json") -> Staged:
        """Reads the file; `key` is what errors name. Raises as `Part.from_bytes` does."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_PART_BYTES), key)
        staged = cls(
            id=str(fields.snapshot("id")),
            step=fields.count("step"),
            epoch=fields.count("epoch", least=-1),
            reason=fields.text("reason"),
            created=fields.seconds("created"),
            finished=fields.flag("finished"),
            world_size=fields.count("world_size", least=1),
            data_bytes=fields.count("data_bytes"),
            latest=numbers_from_json("latest", fields),
            best=bests_from_json("best", fields),
            evaluated=numbers_from_json("evaluated", fields),
            arguments=fields.mapping("arguments"),
            environment=fields.mapping("environment"),
            timings=numbers_from_json("timings", fields),
            tree=fields.body.get("tree"),
            specs=specs_from(fields, "specs"),
        )
        staged._check(fields)
        return staged

    def _check(self, fields: Fields) -> None:
        if self.step != self.snapshot.step or self.reason not in REASONS:
            raise fields.corrupt(f"step {self.step} or reason {self.reason!r} does not belong to {self.id}")
        if self.data_bytes != self.layout().data_bytes:
            raise fields.corrupt("the tensors do not lie as their shapes say")
