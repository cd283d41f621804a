"""The manifest: the small object that makes a snapshot exist, and from which every other byte of it is chained.

It names the parts and packs with their lengths and digests; a part holds the digests of the tensors. So whoever trusts
the manifest can check everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from spotckpt.snapshot.envelope import unwrap, wrap
from spotckpt.snapshot.facts import Facts, facts_from
from spotckpt.snapshot.fields import Fields
from spotckpt.snapshot.keys import SnapshotId, manifest_key, parse_key, split_shared
from spotckpt.snapshot.losses import Lost
from spotckpt.snapshot.segments import SegmentRef

MAX_MANIFEST_BYTES = 1 << 20


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
    parsed = parse_key(split_shared(key)[1])
    if parsed is None or parsed.kind != kind:
        raise fields.corrupt(f"{key!r} is not the key of a {kind}")
    return key


@dataclass(frozen=True, kw_only=True)
class Manifest(Facts):
    """`snapshots/<id>.json`. Times are for showing, never for ordering.

    Attributes:
        run_id: the run that it belongs to.
        snapshot: its id; the nonce in it tells our own manifest from another's.
        parent: the snapshot that this one continues: the last committed of the attempt, else the attempt's base.
        committed: when this manifest was written.
        parts: of each rank.
        packs: every pack that a part uses.
        history: the segments of its metric history, in the order of their rows.
        uploaded_bytes: bytes sent for it.
        overrides: of a fork's first snapshot, arguments that have another value there than when it was captured.
        lost: what the interruption before this attempt cost; None if there was none, or that is not known.
    """

    run_id: str
    snapshot: SnapshotId
    parent: SnapshotId | None
    committed: float
    parts: tuple[PartRef, ...]
    packs: tuple[PackRef, ...]
    history: tuple[SegmentRef, ...] = ()
    uploaded_bytes: int = 0
    lost: Lost | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def objects(self) -> Iterator[tuple[str, int]]:
        """Key and length of everything that it is made of."""
        yield from ((part.key, part.length) for part in self.parts)
        yield from ((pack.key, pack.length) for pack in self.packs)
        yield from ((segment.key, segment.length) for segment in self.history)

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return wrap(
            {
                "run_id": self.run_id,
                "snapshot": str(self.snapshot),
                "parent": None if self.parent is None else str(self.parent),
                "committed": self.committed,
                "uploaded_bytes": self.uploaded_bytes,
                "lost": None if self.lost is None else self.lost.to_json(),
                "parts": [vars(part) for part in self.parts],
                "packs": [vars(pack) for pack in self.packs],
                "history": [vars(segment) for segment in self.history],
                **({"overrides": dict(self.overrides)} if self.overrides else {}),
                **self.facts_to_json(),
            },
            limit_bytes=MAX_MANIFEST_BYTES,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Manifest:
        """Reads the object at `key`. Raises as `unwrap` does, and Corrupt if it belongs at another key."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_MANIFEST_BYTES), key)
        snapshot, lost = fields.snapshot("snapshot"), fields.body.get("lost")
        manifest = cls(
            run_id=fields.text("run_id"),
            snapshot=snapshot,
            parent=fields.maybe_snapshot("parent"),
            committed=fields.seconds("committed"),
            parts=fields.each("parts", PartRef.from_fields),
            packs=fields.each("packs", PackRef.from_fields),
            history=fields.each("history", SegmentRef.from_fields),
            uploaded_bytes=fields.count("uploaded_bytes"),
            lost=None if lost is None else Lost.from_fields(Fields(lost, key)),
            overrides=fields.mapping("overrides") if "overrides" in fields.body else {},
            **facts_from(fields, snapshot),
        )
        manifest._check(fields)
        return manifest

    def _check(self, fields: Fields) -> None:
        if manifest_key(self.snapshot) != fields.key:
            raise fields.corrupt(f"it is the manifest of {self.snapshot}")
        if len(self.parts) != self.world_size:
            raise fields.corrupt(f"it has {len(self.parts)} parts for {self.world_size} ranks")
        for rank, part in enumerate(self.parts):
            found = parse_key(part.key)
            if found is None or found.snapshot != self.snapshot or found.rank != rank:
                raise fields.corrupt(f"part {rank} is {part.key}")
