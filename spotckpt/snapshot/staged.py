"""What a trainer hands to an agent beside the bytes: all that the manifest and the part will need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spotckpt.snapshot.envelope import unwrap, wrap
from spotckpt.snapshot.fields import Fields, numbers_from_json, numbers_to_json
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import REASONS, bests_from_json, bests_to_json
from spotckpt.snapshot.metrics import Best
from spotckpt.snapshot.pack import Layout, layout
from spotckpt.snapshot.part import MAX_PART_BYTES, TensorEntry, entries_from


@dataclass(frozen=True)
class Staged:
    """A snapshot in the spool. The attributes that a `Manifest` has too mean the same there.

    Attributes:
        id: the snapshot's id, as the agent granted it.
        tree: the encoded state tree.
        tensors: each with one chunk of pack 0, its offset counted from the start of the data section, no digest.
        data_bytes: length of the data section.
        header_length: length of what will precede it in the pack; `layout()` gives the same again.
    """

    id: str
    step: int
    epoch: int
    reason: str
    created: float
    tree: Any
    tensors: tuple[TensorEntry, ...]
    data_bytes: int
    header_length: int
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
        return layout([(entry.name, entry.dtype, entry.shape) for entry in self.tensors])

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
                "header_length": self.header_length,
                "latest": numbers_to_json(self.latest),
                "best": bests_to_json(self.best),
                "evaluated": numbers_to_json(self.evaluated),
                "arguments": dict(self.arguments),
                "environment": dict(self.environment),
                "timings": numbers_to_json(self.timings),
                "tree": self.tree,
                "tensors": [entry.to_json() for entry in self.tensors],
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
            header_length=fields.count("header_length"),
            latest=numbers_from_json("latest", fields),
            best=bests_from_json("best", fields),
            evaluated=numbers_from_json("evaluated", fields),
            arguments=fields.mapping("arguments"),
            environment=fields.mapping("environment"),
            timings=numbers_from_json("timings", fields),
            tree=fields.body.get("tree"),
            tensors=entries_from(fields, "tensors"),
        )
        staged._check(fields)
        return staged

    def _check(self, fields: Fields) -> None:
        if self.step != self.snapshot.step or self.reason not in REASONS:
            raise fields.corrupt(f"step {self.step} or reason {self.reason!r} does not belong to {self.id}")
        expected = self.layout()
        places = tuple(chunk.offset for entry in self.tensors for chunk in entry.chunks)
        if any(len(entry.chunks) != 1 or entry.chunks[0].pack != 0 for entry in self.tensors):
            raise fields.corrupt("a tensor is not one chunk of pack 0")
        if (places, self.data_bytes, self.header_length) != (
            expected.offsets,
            expected.data_bytes,
            len(expected.header),
        ):
            raise fields.corrupt("the tensors do not lie as their shapes say")
