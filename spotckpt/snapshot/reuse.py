"""Which tensors of a snapshot need not be sent, because the snapshot that it continues has the same bytes. Pure.

A child refers to packs that its parent's committed manifest names, and to no others: the newest snapshot of a lineage
is never pruned, nor is what it refers to, so these packs stay at least until the child itself is the newest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest, PackRef
from spotckpt.snapshot.pack import Layout
from spotckpt.snapshot.part import Chunk, Part, TensorEntry
from spotckpt.snapshot.segments import SegmentRef

PROBE_BYTES = 4096
"""The first so many bytes of a tensor tell at once that it changed. Of a shorter one they are the whole."""

MAX_OLD_PACKS = 16
"""Each costs a request at the commit and a line of the manifest, and both are bounded."""


class Place(NamedTuple):
    """Where the parent has a tensor: its one chunk, and the pack that it lies in."""

    chunk: Chunk
    pack: PackRef


@dataclass(frozen=True)
class Previous:
    """What is known of a committed snapshot.

    Attributes:
        snapshot: its id.
        packs: in the order of its part.
        tensors: by name, with the digest of the first bytes if it is known.
        history: the segments of its metric history.
    """

    snapshot: SnapshotId
    packs: tuple[PackRef, ...]
    tensors: Mapping[str, tuple[TensorEntry, str | None]]
    history: tuple[SegmentRef, ...] = ()


def previous_of(manifest: Manifest, part: Part, probes: Sequence[str] | None = None) -> Previous:
    """What a child may refer to. `probes`: of each tensor of the part, if they are known."""
    packs = {pack.key: pack for pack in manifest.packs}
    with_probes = zip(part.tensors, probes or repeat(None), strict=False)
    tensors = dict(zip((entry.name for entry in part.tensors), with_probes, strict=True))
    return Previous(manifest.snapshot, tuple(packs[key] for key in part.packs), tensors, manifest.history)


def candidates(tensors: Sequence[TensorEntry], probes: Sequence[str], previous: Previous) -> dict[int, Place]:
    """By index, where the parent has a tensor of the same kind whose bytes may be the same."""
    found = {}
    for index, (entry, probe) in enumerate(zip(tensors, probes, strict=True)):
        before, known = previous.tensors.get(entry.name, (None, None))
        if before is None or len(before.chunks) != 1:
            continue
        (chunk,) = before.chunks
        if is_probed_whole(entry):
            known = chunk.digest
        if (known is None or known == probe) and before[:4] == entry[:4]:
            found[index] = Place(chunk, previous.packs[chunk.pack])
    return found


def is_probed_whole(entry: TensorEntry) -> bool:
    """Whether the tensor's probe is its digest."""
    return entry.chunks[0].length <= PROBE_BYTES


def worth_keeping(places: Mapping[int, Place]) -> dict[int, Place]:
    """Those that lie in packs of which they are at least half; of too many packs, in those with most of the bytes.

    What lies in a pack of which less is live is sent again, so a bucket holds at most twice what its snapshots need.
    """
    live: dict[PackRef, int] = {}
    for place in places.values():
        live[place.pack] = live.get(place.pack, 0) + place.chunk.length
    half = [pack for pack, size in live.items() if 2 * size >= pack.length - pack.header_length]
    kept = set(sorted(half, key=lambda pack: (-live[pack], pack.key))[:MAX_OLD_PACKS])
    return {index: place for index, place in places.items() if place.pack in kept}


def ranges(tensors: Sequence[TensorEntry], order: Collection[int]) -> Iterator[tuple[int, int]]:
    """(start, end) in the data section of these tensors one after the other; neighbours are one range."""
    start = end = 0
    for index in order:
        chunk = tensors[index].chunks[0]
        if chunk.offset != end:
            if end > start:
                yield start, end
            start = chunk.offset
        end = chunk.offset + chunk.length
    if end > start:
        yield start, end


def placed(
    tensors: Sequence[TensorEntry],
    digests: Mapping[int, str],
    kept: Mapping[int, Place],
    own: tuple[PackRef, Layout] | None,
) -> tuple[tuple[PackRef, ...], tuple[TensorEntry, ...]]:
    """The packs of a snapshot and its tensor table.

    Args:
        tensors: as staged.
        digests: of those that were sent.
        kept: where the others lie.
        own: the pack that was sent and how those tensors lie in it, in the order of their indices; None if none was.
    """
    packs = list(dict.fromkeys([*([own[0]] if own else []), *(place.pack for place in kept.values())]))
    if not tensors:
        return tuple(packs), ()
    number = {pack.key: index for index, pack in enumerate(packs)}
    offsets = iter(own[1].offsets if own else ())
    header = own[0].header_length if own else 0
    found = [
        (number[place.pack.key], place.chunk.offset, place.chunk.digest)
        if (place := kept.get(index))
        else (0, header + next(offsets), digests[index])  # our own pack is the first
        for index in range(len(tensors))
    ]
    # by columns: tens of thousands of rows cost milliseconds
    numbers, places, hashes = zip(*found, strict=True)
    names, dtypes, shapes, strides, chunks = zip(*tensors, strict=True)
    _, _, lengths, starts, sides, _ = zip(*(chunk for (chunk,) in chunks), strict=True)
    moved = map(Chunk, numbers, places, lengths, starts, sides, hashes)
    return tuple(packs), tuple(map(TensorEntry, names, dtypes, shapes, strides, zip(moved, strict=True)))
