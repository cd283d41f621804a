"""A snapshot's tensors from one store to another, into one pack of its own."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from blake3 import blake3

from spotckpt.errors import NotFound
from spotckpt.snapshot.arrival import Packs, Reader, pieces_of
from spotckpt.snapshot.envelope import digest
from spotckpt.snapshot.keys import SnapshotId, pack_key
from spotckpt.snapshot.manifest import PackRef
from spotckpt.snapshot.pack import Layout, TensorSpec, layout
from spotckpt.snapshot.part import Chunk, Part, TensorEntry
from spotckpt.store.base import Progress, Store


def copy_tensors(
    source: Store, part: Part, destination: Store, snapshot: SnapshotId, progress: Progress | None = None
) -> tuple[Part, tuple[PackRef, ...]]:
    """Sends what a part names as the one pack of that snapshot, every digest checked on the way.

    A pack that is there is not sent again. What is on its way lies in a temporary file (TMPDIR) of the pack's size.

    Args:
        source: where the part's packs are.
        part: of any snapshot.
        destination: where to.
        snapshot: under which id; nobody else may write under it.
        progress: told the bytes that came, then those that were sent.

    Returns:
        The part of that snapshot, and the packs that it names. They follow from `part` and `snapshot` alone.

    Raises:
        Corrupt: a tensor is not what the part says.
    """
    if not part.tensors:
        return Part(snapshot, part.rank, (), part.tree, ()), ()
    place = layout([TensorSpec(one.name, one.dtype, one.shape, one.stride) for one in part.tensors])
    key, header = pack_key(snapshot, part.rank), len(place.header)
    length = header + place.data_bytes
    digests = {index: one.chunks[0].digest for index, one in enumerate(part.tensors) if len(one.chunks) == 1}
    if len(digests) < len(part.tensors) or not _is_there(destination, key, length):
        with _read(source, part, place, progress) as data:
            for index, entry in enumerate(part.tensors):
                start = place.offsets[index]
                digests.setdefault(index, blake3(data[start : start + entry.size_bytes]).hexdigest())
            destination.put(key, [place.header, data], progress=progress)
    table = tuple(
        TensorEntry(*one[:4], (_whole(one, header + place.offsets[index], digests[index]),))
        for index, one in enumerate(part.tensors)
    )
    return Part(snapshot, part.rank, (key,), part.tree, table), (PackRef(key, length, header, digest(place.header)),)


def _whole(entry: TensorEntry, offset: int, hexdigest: str) -> Chunk:
    return Chunk(0, offset, entry.size_bytes, (0,) * len(entry.shape), entry.shape, hexdigest)


def _is_there(store: Store, key: str, length: int) -> bool:
    try:
        return store.stat(key).size_bytes == length
    except NotFound:
        return False


@contextmanager
def _read(source: Store, part: Part, place: Layout, progress: Progress | None) -> Iterator[memoryview]:
    """The tensors' bytes, as the pack is to have them."""
    with tempfile.TemporaryFile(prefix="spotckpt-copy-") as file:
        file.truncate(max(place.data_bytes, 1))
        # not closed by hand: after an error the views of it still live
        data = memoryview(mmap.mmap(file.fileno(), 0))[: place.data_bytes]
        rows = range(len(part.tensors))
        packs = Packs(source, part)
        packs.require(rows)
        reader = Reader(part, packs, progress=progress)
        reader.read([piece for row in rows for piece in pieces_of(part, row, _place_of(data, place, part, row))])
        reader.finish()
        yield data


def _place_of(data: memoryview, place: Layout, part: Part, row: int) -> memoryview:
    return data[place.offsets[row] : place.offsets[row] + part.tensors[row].size_bytes]
