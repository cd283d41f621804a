"""Reading the metric history of a snapshot: its segments, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator

from spotckpt.deadline import Deadline
from spotckpt.errors import Corrupt, LimitExceeded, NotFound, SnapshotError
from spotckpt.snapshot.arrival import ANOTHER
from spotckpt.snapshot.envelope import digest
from spotckpt.snapshot.lazy import in_parallel
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.segments import SegmentRef, joined, read_segment
from spotckpt.store.base import Store

_AT_ONCE_BYTES = 16 << 20
"""A longer segment is read in several requests."""


def read_history(store: Store, manifest: Manifest, *, deadline: Deadline | None = None) -> History:
    """Every metric up to a snapshot; downloads nothing else of it.

    Raises:
        Corrupt, LimitExceeded: a segment is not what was committed; names the key.
        StoreError: it cannot be read now.
    """
    bodies = in_parallel(lambda one: _read(store, one, deadline), manifest.history)
    segments = [read_segment(body, one) for body, one in zip(bodies, manifest.history, strict=True)]
    history = History()
    history.load(joined(segments, key=str(manifest.snapshot)), [one.size for one in manifest.history])
    return history


def history_problems(store: Store, manifest: Manifest, *, deadline: Deadline | None = None) -> Iterator[str]:
    """What is wrong with each segment, a segment in memory at a time."""
    for one in manifest.history:
        try:
            read_segment(_read(store, one, deadline), one)
        except SnapshotError as error:
            yield error.message


def _read(store: Store, one: SegmentRef, deadline: Deadline | None) -> bytes | bytearray:
    """The bytes of a segment, checked against the manifest."""
    try:
        data = _read_whole(store, one, deadline) if one.length <= _AT_ONCE_BYTES else _read_wide(store, one, deadline)
    except NotFound as error:
        raise Corrupt(f"{one.key} is missing", hint=ANOTHER) from error
    if len(data) != one.length or digest(data) != one.digest:
        raise Corrupt(f"{one.key} is not the object that was committed (digest)", hint=ANOTHER)
    return data


def _read_whole(store: Store, one: SegmentRef, deadline: Deadline | None) -> bytes:
    try:
        return store.read(one.key, limit_bytes=one.length, deadline=deadline)
    except LimitExceeded as error:
        raise Corrupt(f"{one.key} is longer than the manifest says", hint=ANOTHER) from error


def _read_wide(store: Store, one: SegmentRef, deadline: Deadline | None) -> bytearray:
    stat = store.stat(one.key, deadline=deadline)
    if stat.size_bytes != one.length:  # before that much is allocated
        raise Corrupt(f"{one.key} has {stat.size_bytes} bytes, {one.length} were committed", hint=ANOTHER)
    data = bytearray(one.length)
    store.read_into(one.key, [(0, [memoryview(data)])], deadline=deadline, etag=stat.etag)
    return data
