"""Writing a snapshot: the bytes first, the manifest last, and then the question whether we still own the run."""

from __future__ import annotations

from collections.abc import Callable

from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import AlreadyExists, Corrupt, OutcomeUnknown, SnapshotError, StoreError, Superseded
from spotckpt.snapshot.envelope import digest
from spotckpt.snapshot.fetch import read_manifest
from spotckpt.snapshot.keys import SnapshotId, claim_key, manifest_key, pack_key, parse_key, part_key
from spotckpt.snapshot.manifest import MAX_MANIFEST_BYTES, Manifest, PackRef, PartRef
from spotckpt.snapshot.part import Part, TensorEntry
from spotckpt.snapshot.staged import Staged
from spotckpt.store.base import Progress, Stat, Store


def _always() -> None:
    pass


def upload(
    store: Store,
    staged: Staged,
    data: memoryview,
    *,
    run_id: str,
    parent: str | SnapshotId | None,
    deadline: Deadline | None = None,
    progress: Progress | None = None,
    still_valid: Callable[[], None] = _always,
    clock: Clock = SYSTEM_CLOCK,
) -> Manifest:
    """Sends the pack and the part of a staged snapshot. Until `commit`, the snapshot does not exist.

    Doing it again writes the same bytes to the same keys; but if the manifest is there already (an earlier try of
    ours landed), nothing is written and that manifest is returned.

    Args:
        store: rooted at the run.
        staged: what the trainer handed over.
        data: the data section.
        run_id: from `run.json`.
        parent: the snapshot that this one continues.
        deadline: for each request.
        progress: told the bytes sent.
        still_valid: called between the steps; raises if the slot has changed, and nothing is committed then.
        clock: for the manifest's times.

    Raises:
        Corrupt: the data is not what `staged` describes.
        StoreError: a request failed; packs without a manifest may be left.
    """
    snapshot = staged.snapshot
    still_valid()
    if store.exists(manifest_key(snapshot), deadline=deadline):
        return read_manifest(store, snapshot, run_id=run_id, deadline=deadline)
    if len(data) != staged.data_bytes:
        raise Corrupt(f"{staged.id}: {len(data)} bytes are staged, not {staged.data_bytes}", hint="stage it again")
    began = clock.now()
    header = staged.layout().header
    tensors = tuple(_digested(entry, data, len(header), still_valid) for entry in staged.tensors)
    hashed = clock.now()
    pack = _put(store, pack_key(snapshot), [header, data], deadline, progress)
    still_valid()
    part = Part(snapshot, 0, (pack.key,), staged.tree, tensors).to_bytes()
    _put(store, part_key(snapshot), [part], deadline, progress)
    still_valid()
    timings = {**staged.timings, "digest": hashed - began, "upload": clock.now() - hashed}
    return Manifest(
        run_id=run_id,
        snapshot=snapshot,
        parent=SnapshotId.parse(parent) if isinstance(parent, str) else parent,
        step=staged.step,
        epoch=staged.epoch,
        reason=staged.reason,
        created=staged.created,
        committed=clock.wall(),
        parts=(PartRef(part_key(snapshot), len(part), digest(part)),),
        packs=(PackRef(pack.key, pack.size_bytes, len(header), digest(header)),),
        world_size=staged.world_size,
        finished=staged.finished,
        data_bytes=staged.data_bytes,
        uploaded_bytes=pack.size_bytes + len(part),
        latest=staged.latest,
        best=staged.best,
        evaluated=staged.evaluated,
        arguments=staged.arguments,
        environment=staged.environment,
        timings=timings,
    )


def _digested(entry: TensorEntry, data: memoryview, header_length: int, still_valid: Callable[[], None]) -> TensorEntry:
    still_valid()
    chunks = tuple(
        chunk._replace(
            offset=header_length + chunk.offset,
            digest=digest(data[chunk.offset : chunk.offset + chunk.length]),
        )
        for chunk in entry.chunks
    )
    return entry._replace(chunks=chunks)


def _put(
    store: Store, key: str, buffers: list[bytes | memoryview], deadline: Deadline | None, progress: Progress | None
) -> Stat:
    length = sum(len(buffer) for buffer in buffers)
    stat = store.put(key, buffers, deadline=deadline, progress=progress)
    if stat.size_bytes != length:
        raise Corrupt(f"{key}: the store reports {stat.size_bytes} bytes of {length}", hint="nothing was committed")
    return Stat(key, stat.size_bytes, stat.etag)


def commit(store: Store, manifest: Manifest, *, deadline: Deadline | None = None) -> None:
    """Makes the snapshot exist. Returning means acknowledged: every later attempt will find it.

    Idempotent: after an error, calling it again with the same manifest finishes what had begun.

    Raises:
        Superseded: it is committed, but a later attempt has claimed the run and may not have seen it. Stop.
        OutcomeUnknown: the manifest may or may not be there: clean up nothing.
        AlreadyExists: another snapshot's manifest is at this key.
        Corrupt: an older pack that it refers to is missing or has another size.
    """
    _require_old_packs(store, manifest, deadline)
    key = manifest_key(manifest.snapshot)
    try:
        store.put_if_absent(key, manifest.to_bytes(), deadline=deadline)
    except AlreadyExists:
        if not _is_ours(store, manifest, deadline):
            raise
    if _superseded(store, manifest, deadline):
        raise Superseded(f"attempt {manifest.snapshot.attempt + 1} owns the run now; {manifest.snapshot} is not used")


def is_superseded(store: Store, attempt: int, *, deadline: Deadline | None = None) -> bool:
    """Whether a later attempt has claimed the run. Claims have no gaps, so one request tells."""
    return store.exists(claim_key(attempt + 1), deadline=deadline)


def _superseded(store: Store, manifest: Manifest, deadline: Deadline | None) -> bool:
    try:
        return is_superseded(store, manifest.snapshot.attempt, deadline=deadline)
    except StoreError as error:
        raise OutcomeUnknown(
            "commit",
            manifest_key(manifest.snapshot),
            f"it is written, but whether a later attempt owns the run is not known: {error.message}",
            hint="commit it again",
        ) from error


def _is_ours(store: Store, manifest: Manifest, deadline: Deadline | None) -> bool:
    """Whether an earlier try of ours landed. Only the times may differ: that agent may have died since."""
    key = manifest_key(manifest.snapshot)
    try:
        found = Manifest.from_bytes(store.read(key, limit_bytes=MAX_MANIFEST_BYTES, deadline=deadline), key=key)
    except (SnapshotError, StoreError) as error:
        raise OutcomeUnknown("commit", key, f"what is there cannot be read: {error.message}") from error
    return (found.run_id, found.parts, found.packs) == (manifest.run_id, manifest.parts, manifest.packs)


def _require_old_packs(store: Store, manifest: Manifest, deadline: Deadline | None) -> None:
    for pack in manifest.packs:
        parsed = parse_key(pack.key)
        if parsed is not None and parsed.snapshot == manifest.snapshot:
            continue  # its size was confirmed when it was put
        if store.stat(pack.key, deadline=deadline).size_bytes != pack.length:
            raise Corrupt(f"{pack.key} is not the pack that was to be reused", hint="upload all tensors again")
