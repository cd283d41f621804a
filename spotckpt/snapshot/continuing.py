"""Sends the rows of the metric history that the snapshot before does not have; the others are its segments already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from spotckpt.deadline import Deadline
from spotckpt.errors import Corrupt, NotFound, SnapshotError
from spotckpt.snapshot.fetch import read_manifest
from spotckpt.snapshot.keys import SnapshotId, history_key
from spotckpt.snapshot.lazy import in_parallel
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.reuse import Previous
from spotckpt.snapshot.segments import (
    NOTHING,
    Discontinued,
    RowsStaged,
    SegmentRef,
    Size,
    num_continued,
    segment_layout,
    slices,
)
from spotckpt.store.base import Progress, Store


@dataclass(frozen=True)
class Continuation:
    """A history as it will stand in a manifest.

    Attributes:
        kept: of the parent's segments.
        size: of the one that is to be sent, none if it has no rows.
        buffers: its bytes.
    """

    kept: tuple[SegmentRef, ...] = ()
    size: Size = NOTHING
    buffers: Sequence[bytes | memoryview] = field(default=())

    @property
    def length(self) -> int:
        """Bytes to send."""
        return sum(map(len, self.buffers))

    def send(
        self, store: Store, snapshot: SnapshotId, *, deadline: Deadline | None, progress: Progress | None
    ) -> tuple[SegmentRef, ...]:
        """Returns all segments of the snapshot."""
        if not self.size.rows:
            return self.kept
        hasher = blake3()
        for buffer in self.buffers:
            hasher.update(buffer)
        key = history_key(snapshot)
        stat = store.put(key, self.buffers, deadline=deadline, progress=progress)
        if stat.size_bytes != self.length:
            raise Corrupt(f"{key}: the store reports {stat.size_bytes} bytes of {self.length}", hint="send it again")
        return (*self.kept, SegmentRef(key, self.length, hasher.hexdigest(), self.size.rows, self.size.payload_bytes))


def continue_history(
    store: Store,
    staged: RowsStaged,
    data: memoryview,
    *,
    parent: SnapshotId | None,
    previous: Previous | None,
    run_id: str,
    deadline: Deadline | None,
) -> Continuation:
    """What of the parent's history stays, and what is sent.

    Args:
        staged: the rows that the trainer handed over.
        data: their bytes.
        parent: the snapshot that this one continues.
        previous: what is known of it; None reads its manifest.

    Raises:
        Discontinued: the parent's history cannot be gone on from, and these rows are not all.
        StoreError: that could not be found out now.
    """
    known: tuple[SegmentRef, ...] = ()
    if staged.first:
        known = previous.history if previous is not None else _read(store, parent, run_id, deadline)
    count = num_continued([one.size for one in known], staged)
    there = list(in_parallel(lambda one: _is_there(store, one, deadline), known[:count]))
    kept = known[: there.index(False) if False in there else count]
    before = Size(sum(one.rows for one in kept), sum(one.payload_bytes for one in kept))
    if before.rows < staged.first:
        raise Discontinued(f"{known[len(kept)].key} is not there any more", hint="the next snapshot brings all rows")
    size = Size(staged.end.rows - before.rows, staged.end.payload_bytes - before.payload_bytes)
    if not size.rows:
        return Continuation(kept)
    header = segment_layout(size, staged.names).header
    return Continuation(kept, size, [header, *slices(staged, data, before)])


def send_whole(
    store: Store, history: History, snapshot: SnapshotId, *, progress: Progress | None = None
) -> tuple[SegmentRef, ...]:
    """Sends all of a history as the one segment of that snapshot, none if it is empty; the same bytes whenever."""
    history.committed(None, ())
    rows = history.stage()
    data = memoryview(bytearray(rows.size_bytes))
    history.rows.copy(rows, data)
    found = continue_history(store, rows, data, parent=None, previous=None, run_id="", deadline=None)
    return found.send(store, snapshot, deadline=None, progress=progress)


def _read(store: Store, parent: SnapshotId | None, run_id: str, deadline: Deadline | None) -> tuple[SegmentRef, ...]:
    try:
        return () if parent is None else read_manifest(store, parent, run_id=run_id, deadline=deadline).history
    except SnapshotError as error:
        raise Discontinued(
            f"the history of {parent} cannot be gone on from: {error.message}", hint="the next snapshot brings all rows"
        ) from error


def _is_there(store: Store, one: SegmentRef, deadline: Deadline | None) -> bool:
    try:
        return store.stat(one.key, deadline=deadline).size_bytes == one.length
    except NotFound:
        return False
