"""The manifest: the small object that makes a snapshot exist, and from which every other byte of it is chained.

It names the parts and packs with their lengths and digests; a part holds the digests of the tensors. So whoever trusts
the manifest can check everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from spotckpt.snapshot.envelope import unwrap, wrap
from spotckpt.snapshot.fields import (
    Fields,
    number_from_json,
    number_to_json,
    numbers_from_json,
    numbers_to_json,
)
from spotckpt.snapshot.keys import SnapshotId, manifest_key, parse_key
from spotckpt.snapshot.metrics import Best

MAX_MANIFEST_BYTES = 1 << 20

Reason = Literal["periodic", "notice", "manual", "best", "final"]
REASONS: tuple[str, ...] = get_args(Reason)


@dataclass(frozen=True)
class PartRef:
    """A part as its manifest names it; `digest` is BLAKE3 of the whole object."""

    key: str
    length: int
    digest: str

    @classmethod
    def from_fields(cls, fields: Fields) -> PartRef:
        """Reads it. A key outside the grammar is Corrupt."""
        key = _key(fields, "part")
        return cls(key, fields.count("length", least=1), fields.digest("digest"))


@dataclass(frozen=True)
class PackRef:
    """A pack as a manifest names it: object size, and size and BLAKE3 of its safetensors header (length prefix too)."""

    key: str
    length: int
    header_length: int
    header_digest: str

    def __hash__(self) -> int:
        # each of ten thousand tensors is looked up by its pack; a string knows its own hash
        return hash(self.key)

    @classmethod
    def from_fields(cls, fields: Fields) -> PackRef:
        """Reads it. A key outside the grammar is Corrupt."""
        key = _key(fields, "pack")
        length, header = fields.count("length", least=8), fields.count("header_length", least=8)
        if header > length:
            raise fields.corrupt("a pack's header is longer than the pack")
        return cls(key, length, header, fields.digest("header_digest"))


def _key(fields: Fields, kind: str) -> str:
    key = fields.text("key")
    parsed = parse_key(key)
    if parsed is None or parsed.kind != kind:
        raise fields.corrupt(f"{key!r} is not the key of a {kind}")
    return key


@dataclass(frozen=True)
class Manifest:
    """`snapshots/<id>.json`. Times are seconds since the epoch by the writer's clock, for showing, never for ordering.

    Attributes:
        run_id: the run that it belongs to.
        snapshot: its id; the nonce in it tells our own manifest from another's.
        parent: the snapshot that this one continues: the last committed of the attempt, else the attempt's base.
        step: boundaries counted. epoch: the epoch it was taken in, -1 outside epochs.
        reason: why it was taken.
        created: when it was captured. committed: when this manifest was written.
        world_size: ranks, each with one part.
        latest: the last value of each metric, `set/name`.
        best: `set/name:min` and `set/name:max`.
        evaluated: metrics measured on exactly these weights.
        arguments, environment: of the run, JSON values, for showing.
        data_bytes: tensor bytes. uploaded_bytes: bytes sent for it.
        timings: seconds by phase.
        finished: the run was over; a restart has nothing to do.
    """

    run_id: str
    snapshot: SnapshotId
    parent: SnapshotId | None
    step: int
    epoch: int
    reason: str
    created: float
    committed: float
    parts: tuple[PartRef, ...]
    packs: tuple[PackRef, ...]
    world_size: int = 1
    finished: bool = False
    data_bytes: int = 0
    uploaded_bytes: int = 0
    latest: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, Best] = field(default_factory=dict)
    evaluated: Mapping[str, float] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return wrap(
            {
                "run_id": self.run_id,
                "snapshot": str(self.snapshot),
                "parent": None if self.parent is None else str(self.parent),
                "step": self.step,
                "epoch": self.epoch,
                "reason": self.reason,
                "created": self.created,
                "committed": self.committed,
                "world_size": self.world_size,
                "finished": self.finished,
                "data_bytes": self.data_bytes,
                "uploaded_bytes": self.uploaded_bytes,
                "parts": [vars(part) for part in self.parts],
                "packs": [vars(pack) for pack in self.packs],
                "latest": numbers_to_json(self.latest),
                "best": bests_to_json(self.best),
                "evaluated": numbers_to_json(self.evaluated),
                "arguments": dict(self.arguments),
                "environment": dict(self.environment),
                "timings": numbers_to_json(self.timings),
            },
            limit_bytes=MAX_MANIFEST_BYTES,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Manifest:
        """Reads the object at `key`. Raises as `unwrap` does, and Corrupt if it belongs at another key."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_MANIFEST_BYTES), key)
        manifest = cls(
            run_id=fields.text("run_id"),
            snapshot=fields.snapshot("snapshot"),
            parent=fields.maybe_snapshot("parent"),
            step=fields.count("step"),
            epoch=fields.count("epoch", least=-1),
            reason=fields.text("reason"),
            created=fields.seconds("created"),
            committed=fields.seconds("committed"),
            world_size=fields.count("world_size", least=1),
            finished=fields.flag("finished"),
            data_bytes=fields.count("data_bytes"),
            uploaded_bytes=fields.count("uploaded_bytes"),
            parts=fields.each("parts", PartRef.from_fields),
            packs=fields.each("packs", PackRef.from_fields),
            latest=numbers_from_json("latest", fields),
            best=bests_from_json("best", fields),
            evaluated=numbers_from_json("evaluated", fields),
            arguments=fields.mapping("arguments"),
            environment=fields.mapping("environment"),
            timings=numbers_from_json("timings", fields),
        )
        manifest._check(fields)
        return manifest

    def _check(self, fields: Fields) -> None:
        if manifest_key(self.snapshot) != fields.key:
            raise fields.corrupt(f"it is the manifest of {self.snapshot}")
        if self.step != self.snapshot.step or self.reason not in REASONS:
            raise fields.corrupt(f"step {self.step} or reason {self.reason!r} does not belong to it")
        if len(self.parts) != self.world_size:
            raise fields.corrupt(f"it has {len(self.parts)} parts for {self.world_size} ranks")
        for rank, part in enumerate(self.parts):
            found = parse_key(part.key)
            if found is None or found.snapshot != self.snapshot or found.rank != rank:
                raise fields.corrupt(f"part {rank} is {part.key}")


def bests_to_json(bests: Mapping[str, Best]) -> dict[str, Any]:
    """Best values as they stand in a manifest."""
    return {
        name: {"value": number_to_json(best.value), "step": best.step, "epoch": best.epoch}
        for name, best in bests.items()
    }


def bests_from_json(name: str, fields: Fields) -> dict[str, Best]:
    """The inverse of `bests_to_json`."""
    found = {}
    for metric, body in fields.mapping(name).items():
        best = Fields(body, fields.key)
        found[metric] = Best(
            number_from_json(best.body.get("value"), best), best.count("step"), best.count("epoch", least=-1)
        )
    return found
