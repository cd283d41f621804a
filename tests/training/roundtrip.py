"""A capture that went through bytes and back, as it does through a snapshot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blake3 import blake3

from spotckpt.snapshot.arrival import Piece
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.pack import layout
from spotckpt.snapshot.part import Chunk, Part, TensorEntry
from spotckpt.snapshot.staged import table
from spotckpt.training.capture import capture
from spotckpt.training.filling import Filling
from spotckpt.training.restore import MapLocation, decode_value, prepare
from tests.training.copied import copy_into

PACK = "packs/a0001-n000000-s00000000-00000000/rank-00000.safetensors"


class Snapshot:
    """A part with its bytes in memory: a source of its own tensors."""

    def __init__(self, part: Part, data: bytes | bytearray) -> None:
        self.part = part
        self.data = data

    def read(self, pieces: Sequence[Piece], arrived: Callable[[Piece], None]) -> None:
        for piece in pieces:
            start = piece.chunk.offset + piece.at
            piece.into[:] = self.data[start : start + len(piece.into)]
            arrived(piece)

    def value(self, tree: object, *, path: str = "", map_location: MapLocation = None) -> Any:
        filling = Filling(self.part)
        value = decode_value(tree, filling, path=path, map_location=map_location)
        filling.read(self)
        return value

    def restore(self, name: str, obj: object, saved: Mapping[str, Any], **options: Any) -> tuple[str, ...]:
        filling = Filling(self.part)
        load = prepare(name, obj, saved, filling, **options)
        filling.read(self)
        return load()


def through_bytes(
    objects: Mapping[str, object], extra: Mapping[str, object] | None = None
) -> tuple[dict[str, Any], Snapshot]:
    """The tree and the tensors as a restore gets them."""
    captured = capture(objects, extra or {})
    plan = layout(captured.specs)
    data = bytearray(plan.data_bytes)
    copy_into(captured, memoryview(data), plan)
    tree = json.loads(json.dumps(captured.tree, allow_nan=False))
    return tree, Snapshot(part_of(table(captured.specs, plan), data), data)


def part_of(entries: Sequence[TensorEntry], data: bytes | bytearray) -> Part:
    """A part whose digests are those of the data."""

    def digested(chunk: Chunk) -> Chunk:
        return chunk._replace(digest=blake3(data[chunk.offset : chunk.offset + chunk.length]).hexdigest())

    with_digests = tuple(entry._replace(chunks=tuple(map(digested, entry.chunks))) for entry in entries)
    return Part(SnapshotId(1, 0, 0, "00000000"), 0, (PACK,), {}, with_digests)


def value_through_bytes(value: object) -> Any:
    """One value, decoded."""
    tree, snapshot = through_bytes({}, {"value": value})
    return snapshot.value(tree["run"]["value"])
