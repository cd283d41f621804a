"""The part: one rank's state tree, and for every tensor where its bytes lie and what their digest is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spotckpt.errors import LimitExceeded
from spotckpt.snapshot.envelope import unwrap, wrap
from spotckpt.snapshot.fields import Fields
from spotckpt.snapshot.keys import SnapshotId, parse_key, part_key
from spotckpt.snapshot.pack import ITEM_BYTES, MAX_TENSORS, size_bytes

MAX_PART_BYTES = 256 << 20


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, in row-major order, in one pack.

    Attributes:
        pack: index into the part's `packs`.
        offset: from the first byte of the pack's object (in a `Staged`: from the start of the data section).
        length: bytes.
        start: the box's lowest corner in the tensor.
        shape: the box's sides.
        digest: BLAKE3 of its bytes; empty in a `Staged`, where nobody has read them yet.
    """

    pack: int
    offset: int
    length: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    digest: str = ""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of the state tree.

    The bytes in the pack are always row-major; `stride` (in elements) says how the tensor lay in memory when it was
    not, so that it can be laid so again.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    chunks: tuple[Chunk, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        """As it stands in a part."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "stride": None if self.stride is None else list(self.stride),
            "chunks": [
                {
                    "pack": chunk.pack,
                    "offset": chunk.offset,
                    "length": chunk.length,
                    "start": list(chunk.start),
                    "shape": list(chunk.shape),
                    "digest": chunk.digest,
                }
                for chunk in self.chunks
            ],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> TensorEntry:
        """Reads it and checks that the chunks fill the tensor; digests are the caller's to check."""
        stride = None if fields.body.get("stride") is None else fields.counts("stride")
        chunks = fields.each("chunks", _chunk)
        entry = cls(fields.text("name"), fields.text("dtype"), fields.counts("shape"), stride, chunks)
        entry._check(fields)
        return entry

    def _check(self, fields: Fields) -> None:
        total = size_bytes(self.dtype, self.shape)
        if self.stride is not None and len(self.stride) != len(self.shape):
            raise fields.corrupt(f"tensor {self.name} has a stride of other dimensions")
        for chunk in self.chunks:
            inside = len(chunk.start) == len(chunk.shape) == len(self.shape) and all(
                start + side <= whole for start, side, whole in zip(chunk.start, chunk.shape, self.shape, strict=True)
            )
            if not inside or chunk.length != size_bytes(self.dtype, chunk.shape):
                raise fields.corrupt(f"tensor {self.name} has a chunk that does not fit")
        if sum(chunk.length for chunk in self.chunks) != total:
            raise fields.corrupt(f"the chunks of tensor {self.name} do not fill it")


def _chunk(fields: Fields) -> Chunk:
    return Chunk(
        fields.count("pack"),
        fields.count("offset"),
        fields.count("length"),
        fields.counts("start"),
        fields.counts("shape"),
        fields.text("digest"),
    )


def entries_from(fields: Fields, name: str) -> tuple[TensorEntry, ...]:
    """The tensors of a record, no more than the cap."""
    if len(fields.get(name, list)) > MAX_TENSORS:
        raise LimitExceeded(f"{fields.key} lists more than {MAX_TENSORS} tensors", hint="it was not written by us")
    return fields.each(name, TensorEntry.from_fields)


@dataclass(frozen=True)
class Part:
    """`packs/<id>/rank-00000.json`. The same staged bytes always give the same part, byte for byte.

    Attributes:
        snapshot: whose part.
        rank: of which rank.
        packs: keys of the packs that the chunks lie in.
        tree: the state tree, in which `{"$tensor": i}` and the like are indices into `tensors`.
        tensors: the table.
    """

    snapshot: SnapshotId
    rank: int
    packs: tuple[str, ...]
    tree: Any
    tensors: tuple[TensorEntry, ...]

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return wrap(
            {
                "snapshot": str(self.snapshot),
                "rank": self.rank,
                "packs": list(self.packs),
                "tree": self.tree,
                "tensors": [entry.to_json() for entry in self.tensors],
            },
            limit_bytes=MAX_PART_BYTES,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Part:
        """Reads the object at `key`; nothing is allocated by what it declares.

        Raises:
            Corrupt: as `unwrap`, or it belongs at another key, or the table contradicts itself.
            LimitExceeded: a declared size over the cap.
        """
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_PART_BYTES), key)
        part = cls(
            fields.snapshot("snapshot"),
            fields.count("rank"),
            fields.texts("packs"),
            fields.body.get("tree"),
            entries_from(fields, "tensors"),
        )
        if part_key(part.snapshot, part.rank) != key:
            raise fields.corrupt(f"it is the part of {part.snapshot}, rank {part.rank}")
        _check_packs(part.packs, fields)
        _check_chunks(part.tensors, len(part.packs), fields)
        return part


def _check_packs(packs: Iterable[str], fields: Fields) -> None:
    for pack in packs:
        found = parse_key(pack)
        if found is None or found.kind != "pack":
            raise fields.corrupt(f"{pack!r} is not the key of a pack")


def _check_chunks(entries: Iterable[TensorEntry], num_packs: int, fields: Fields) -> None:
    for entry in entries:
        for chunk in entry.chunks:
            if chunk.pack >= num_packs or len(chunk.digest) != 64:
                raise fields.corrupt(f"tensor {entry.name} has a chunk without a pack or a digest")
