"""Reading a snapshot back, trusting nothing: every object must be what the one above it says, digest by digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TypeVar

from spotckpt.deadline import Deadline
from spotckpt.errors import (
    Corrupt,
    FutureFormat,
    LimitExceeded,
    NotFound,
    NothingRestorable,
    Pruned,
    SnapshotError,
    SpotckptError,
)
from spotckpt.snapshot.arrival import ANOTHER, Packs, Reader, pieces_of
from spotckpt.snapshot.choose import Choice, Evaluated
from spotckpt.snapshot.envelope import digest
from spotckpt.snapshot.history import history_problems
from spotckpt.snapshot.keys import SnapshotId, manifest_key, tombstone_key
from spotckpt.snapshot.lazy import in_parallel
from spotckpt.snapshot.manifest import MAX_MANIFEST_BYTES, Manifest
from spotckpt.snapshot.pack import read_header
from spotckpt.snapshot.part import MAX_PART_BYTES, Part
from spotckpt.snapshot.records import MAX_TOMBSTONE_BYTES, Tombstone
from spotckpt.store.base import Progress, Store

T = TypeVar("T")

GROUP_BYTES = 128 << 20
"""About as much as `verify` has in memory at a time."""


def read_manifest(
    store: Store, snapshot: SnapshotId, *, run_id: str | None = None, deadline: Deadline | None = None
) -> Manifest:
    """The manifest, checked against its key, and against the run's id if that is given.

    Raises:
        Pruned: it is missing, and recorded as pruned.
        Corrupt: it is missing, damaged, or another's.
        FutureFormat: a newer version wrote it.
        LimitExceeded: it is over the cap.
    """
    key = manifest_key(snapshot)
    try:
        data = store.read(key, limit_bytes=MAX_MANIFEST_BYTES, deadline=deadline)
    except NotFound as error:
        raise _missing(store, snapshot, deadline) from error
    manifest = Manifest.from_bytes(data, key=key)
    if run_id is not None and manifest.run_id != run_id:
        raise Corrupt(f"{key} belongs to run {manifest.run_id}, not {run_id}", hint=ANOTHER)
    return manifest


def _missing(store: Store, snapshot: SnapshotId, deadline: Deadline | None) -> SnapshotError:
    found = read_tombstone(store, snapshot, deadline=deadline)
    if found is None:
        return Corrupt(f"{manifest_key(snapshot)} is missing", hint=ANOTHER)
    day = datetime.fromtimestamp(found.time, timezone.utc)
    return Pruned(
        f"snapshot {snapshot} was pruned on {day:%Y-%m-%d %H:%M} UTC ({found.why})",
        hint="spotckpt ls shows what was kept; spotckpt pin keeps a snapshot",
    )


def read_tombstone(store: Store, snapshot: SnapshotId, *, deadline: Deadline | None = None) -> Tombstone | None:
    """The record that the snapshot was pruned, or None. Raises as `Tombstone.from_bytes` does."""
    key = tombstone_key(snapshot)
    try:
        return Tombstone.from_bytes(store.read(key, limit_bytes=MAX_TOMBSTONE_BYTES, deadline=deadline), key=key)
    except NotFound:
        return None


def read_manifests(
    store: Store, snapshots: Iterable[SnapshotId], *, run_id: str | None = None
) -> dict[SnapshotId, Manifest | SnapshotError]:
    """Many manifests at once; in place of one that cannot be read, the error that says why."""

    def one(snapshot: SnapshotId) -> Manifest | SnapshotError:
        try:
            return read_manifest(store, snapshot, run_id=run_id)
        except SnapshotError as error:
            return error

    ids = list(snapshots)
    return dict(zip(ids, in_parallel(one, ids), strict=True))


def evaluated_of(store: Store, *, run_id: str | None, say: Callable[[str], None]) -> Evaluated:
    """The `evaluated` argument of `choose`: reads the manifests; one that is unreadable is told and left out.

    What it returns raises FutureFormat and StoreError.
    """

    def evaluated(snapshots: Sequence[SnapshotId]) -> dict[SnapshotId, Mapping[str, float]]:
        found: dict[SnapshotId, Mapping[str, float]] = {}
        for snapshot, manifest in read_manifests(store, snapshots, run_id=run_id).items():
            if isinstance(manifest, Manifest):
                found[snapshot] = manifest.evaluated
            elif isinstance(manifest, FutureFormat):
                raise manifest
            else:
                say(f"cannot compare {snapshot}: {manifest}")
        return found

    return evaluated


def read_part(store: Store, manifest: Manifest, rank: int = 0, *, deadline: Deadline | None = None) -> Part:
    """The part of that rank, checked against the manifest; its chunks lie within the packs that the manifest names.

    Raises:
        Corrupt: it is missing, damaged, or not the one that was committed.
        FutureFormat, LimitExceeded: as `Part.from_bytes`.
    """
    reference = manifest.parts[rank]
    if reference.length > MAX_PART_BYTES:
        raise LimitExceeded(f"{reference.key} is said to have {reference.length} bytes", hint=ANOTHER)
    try:
        data = _read(store, reference.key, reference.length, deadline)
    except LimitExceeded as error:
        raise Corrupt(f"{reference.key} is longer than the manifest says", hint=ANOTHER) from error
    if len(data) != reference.length or digest(data) != reference.digest:
        raise Corrupt(f"{reference.key} is not the object that was committed (digest)", hint=ANOTHER)
    part = Part.from_bytes(data, key=reference.key)
    _check_inside(part, manifest, reference.key)
    return part


def _check_inside(part: Part, manifest: Manifest, key: str) -> None:
    packs = {pack.key: pack for pack in manifest.packs}
    for name in part.packs:
        if name not in packs:
            raise Corrupt(f"{key} uses {name}, which its manifest does not name", hint=ANOTHER)
    for entry in part.tensors:
        for chunk in entry.chunks:
            pack = packs[part.packs[chunk.pack]]
            if not pack.header_length <= chunk.offset <= pack.length - chunk.length:
                raise Corrupt(f"{key}: tensor {entry.name} lies outside {pack.key}", hint=ANOTHER)


def read_tensors(
    store: Store,
    part: Part,
    indices: Iterable[int] | None = None,
    progress: Progress | None = None,
    *,
    deadline: Deadline | None = None,
) -> dict[int, bytearray]:
    """The bytes of tensors, row-major, every digest checked.

    Args:
        store: rooted at the run.
        part: from `read_part`.
        indices: into `part.tensors`; None is all.
        progress: told the bytes that arrived.
        deadline: for the whole.

    Returns:
        A writable buffer per index, which the caller owns.

    Raises:
        Corrupt: a pack is missing or short, or a chunk does not match its digest.
    """
    wanted = sorted(set(range(len(part.tensors)) if indices is None else indices))
    packs = Packs(store, part, deadline=deadline)
    packs.require(wanted)
    buffers = {index: bytearray(part.tensors[index].size_bytes) for index in wanted}
    reader = Reader(part, packs, progress=progress)
    reader.read([piece for index in wanted for piece in pieces_of(part, index, memoryview(buffers[index]))])
    reader.finish()
    return buffers


def _read(store: Store, key: str, limit_bytes: int, deadline: Deadline | None) -> bytes:
    try:
        return store.read(key, limit_bytes=limit_bytes, deadline=deadline)
    except NotFound as error:
        raise Corrupt(f"{key} is missing", hint=ANOTHER) from error


@dataclass(frozen=True)
class Verified:
    """What `verify` found. `problems` is empty if every byte is as it was committed."""

    manifest: Manifest
    tensors: int
    read_bytes: int
    problems: tuple[str, ...]


def verify(
    store: Store,
    snapshot: SnapshotId,
    progress: Progress | None = None,
    *,
    run_id: str | None = None,
    deadline: Deadline | None = None,
) -> Verified:
    """Checks the digests of everything, a few tensors or a segment of the metrics in memory at a time.

    Raises:
        Corrupt, FutureFormat, LimitExceeded: the manifest or a part cannot be used; all else is in `problems`.
    """
    manifest = read_manifest(store, snapshot, run_id=run_id, deadline=deadline)
    problems = [*_header_problems(store, manifest, deadline), *history_problems(store, manifest, deadline=deadline)]
    tensors, read = 0, sum(one.length for one in manifest.history)
    for rank in range(manifest.world_size):
        part = read_part(store, manifest, rank, deadline=deadline)
        tensors += len(part.tensors)
        for group in _groups(part):
            try:
                buffers = read_tensors(store, part, group, progress=progress, deadline=deadline)
                read += sum(len(buffer) for buffer in buffers.values())
            except Corrupt as error:
                problems.append(error.message)
    return Verified(manifest, tensors, read, tuple(problems))


def _groups(part: Part) -> list[list[int]]:
    """Indices by place in the pack, in groups of about `GROUP_BYTES`."""
    order = sorted(range(len(part.tensors)), key=lambda i: [(c.pack, c.offset) for c in part.tensors[i].chunks])
    groups: list[list[int]] = []
    room = 0
    for index in order:
        size = part.tensors[index].size_bytes
        if not groups or size > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(index)
        room -= size
    return groups


def _header_problems(store: Store, manifest: Manifest, deadline: Deadline | None) -> list[str]:
    problems = []
    for pack in manifest.packs:
        try:
            stat = store.stat(pack.key, deadline=deadline)
            if stat.size_bytes != pack.length:
                problems.append(f"{pack.key} has {stat.size_bytes} bytes, {pack.length} were committed")
                continue
            header = bytearray(pack.header_length)
            store.read_into(pack.key, [(0, [memoryview(header)])], deadline=deadline, etag=stat.etag)
            if digest(header) != pack.header_digest:
                problems.append(f"{pack.key}: the header does not match its digest")
            else:
                read_header(bytes(header), key=pack.key)
        except NotFound:
            problems.append(f"{pack.key} is missing")
        except SnapshotError as error:
            problems.append(error.message)
    return problems


def pick(
    store: Store, choice: Choice, check: Callable[[SnapshotId], T], say: Callable[[str], None]
) -> tuple[SnapshotId, T] | None:
    """Tries the candidates in order.

    Args:
        store: named in the error.
        choice: from `choose`.
        check: reads what the caller needs of a snapshot; Corrupt, Pruned, NotFound or LimitExceeded skips it.
        say: told what was wrong with each one skipped.

    Returns:
        The first that is whole and what `check` gave for it; None for a fresh start.

    Raises:
        NothingRestorable: none is, listing each; never a fresh start in its place.
        Pruned: there was one only, and it was pruned.
        FutureFormat: a newer version wrote a candidate: to skip it would lose what that version did.
    """
    if choice.fresh:
        return None
    wrong: list[str] = []
    only: SpotckptError | None = None
    for snapshot in choice.candidates:
        try:
            return snapshot, check(snapshot)
        except (Corrupt, LimitExceeded, NotFound, Pruned) as error:
            only = None if wrong else error
            wrong.append(f"{snapshot}: {error.message}")
            say(f"snapshot {wrong[-1]}; skipped")
    if isinstance(only, Pruned):
        raise only
    listing = "; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else "")
    raise NothingRestorable(
        f"none of the {len(wrong)} snapshots of {store.uri} can be restored: {listing}",
        hint="name another by its full id, or give another run address to begin anew",
    )
