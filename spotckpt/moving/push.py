"""From a file to a snapshot: of attempt 1 of a new run, which is released, so that a training goes on from it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from spotckpt.deadline import SYSTEM_CLOCK
from spotckpt.errors import AlreadyExists, Superseded
from spotckpt.moving.contents import Contents, captured, row_major
from spotckpt.moving.document import imported
from spotckpt.moving.histories import history_of
from spotckpt.moving.pull import Begin
from spotckpt.snapshot.attempts import claim, ensure_run, write_base, write_heartbeat
from spotckpt.snapshot.catalog import highest_attempt, read_claim, read_heartbeat
from spotckpt.snapshot.continuing import send_whole
from spotckpt.snapshot.envelope import digest
from spotckpt.snapshot.fetch import read_manifest
from spotckpt.snapshot.keys import SnapshotId, manifest_key, pack_key, part_key
from spotckpt.snapshot.manifest import Manifest, PackRef, PartRef
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.pack import layout
from spotckpt.snapshot.part import Part
from spotckpt.snapshot.records import Base, Heartbeat, Holder
from spotckpt.snapshot.reuse import placed
from spotckpt.snapshot.save import commit
from spotckpt.snapshot.staged import table
from spotckpt.store.base import Buffer, Store

ATTEMPT = 1
_CONTENT = "content"
_ELSEWHERE = "give another address"


@dataclass(frozen=True)
class _Prepared:
    """A checkpoint as it will lie in the bucket. Its name follows from its bytes, so that a second try finds the first.

    Attributes:
        snapshot: its id, whose nonce is of the content.
        content: the digest of all of it.
        header: of the pack.
        data: of the pack, in order.
    """

    snapshot: SnapshotId
    content: str
    tree: Any
    entries: Any
    digests: dict[int, str]
    place: Any
    data: list[memoryview]
    history: History


def placed_at(contents: Contents, *, step: int | None, epoch: int | None) -> Contents:
    """The checkpoint as a training goes on from it: one of ours where it stood, another's at that step and epoch."""
    if contents.run and step is None and epoch is None:
        return contents
    return imported(
        contents.objects,
        contents.kinds,
        contents.vars,
        step=contents.step if step is None else step,
        epoch=contents.epoch if epoch is None else epoch,
        history=contents.history,
        rng=((contents.run.get("position") or {}).get("generators") or {}).get("rng"),
    )


def push(store: Store, contents: Contents, *, name: str, begin: Begin, say: Callable[[str], None]) -> Manifest:
    """Makes a checkpoint the first snapshot of a new run.

    What was sent stays in the bucket, unfinished, until all is; after an interruption the next call with the same file
    goes on there. The manifest is written last: until then there is no snapshot.

    Args:
        store: rooted at the run.
        contents: the checkpoint.
        name: of the file, for showing.
        begin: for showing.
        say: told when it was there already.

    Raises:
        EncodeError: a value that a snapshot cannot hold.
        AlreadyExists: there is a run.
        StoreError: it cannot be written now.
    """
    prepared = _prepare(contents, begin)
    _check_free(store, prepared)
    run = ensure_run(store)
    key = manifest_key(prepared.snapshot)
    if store.exists(key):
        say(f"{store.uri}@{prepared.snapshot} is there already")
        manifest = read_manifest(store, prepared.snapshot, run_id=run.run_id)
    else:
        manifest = _send(store, prepared, contents, run_id=run.run_id, begin=begin)
        _claim(store, prepared, name)
        _commit(store, manifest)
    _release(store, prepared.snapshot)
    return manifest


def _prepare(contents: Contents, begin: Begin) -> _Prepared:
    found = captured(contents, with_history=False)
    history = history_of(contents.history)
    place = layout(found.specs)
    bodies = [row_major(one) for one in found.tensors]
    progress = begin("hashing", place.data_bytes, 0)
    digests = {}
    for row, body in enumerate(bodies):
        digests[row] = blake3(body).hexdigest()
        progress(len(body))
    whole = json.dumps([found.tree, found.specs, list(digests.values()), contents.step, _digests(history)])
    content = blake3(whole.encode()).hexdigest()
    return _Prepared(
        snapshot=SnapshotId(ATTEMPT, 0, contents.step, content[:8]),
        content=content,
        tree=found.tree,
        entries=table(found.specs, place),
        digests=digests,
        place=place,
        data=[bodies[row] for row in place.order],
        history=history,
    )


def _digests(history: History) -> list[str]:
    """What tells one metric history from another."""
    rows = history.rows
    columns = (rows.steps, rows.epochs, rows.ids, rows.values, rows.payload)
    return [*(digest(bytes(memoryview(column))) for column in columns), *history.latest()]


def _check_free(store: Store, prepared: _Prepared) -> None:
    """Another run is never touched; what an earlier try of this one left is taken up."""
    highest = highest_attempt(store)
    ours = None if highest == 0 else read_claim(store, ATTEMPT)
    if highest == 0 or (ours is not None and ours.arguments.get(_CONTENT) == prepared.content):
        return
    raise AlreadyExists("push", store.uri, "there is a run already", hint=_ELSEWHERE)


def _send(store: Store, prepared: _Prepared, contents: Contents, *, run_id: str, begin: Begin) -> Manifest:
    began, created = SYSTEM_CLOCK.now(), SYSTEM_CLOCK.wall()
    own = None
    sent = 0
    if prepared.data:
        header = prepared.place.header
        body: list[Buffer] = [header, *prepared.data]
        progress = begin("uploading", prepared.place.data_bytes + len(header), 0)
        stat = store.put_resumed(pack_key(prepared.snapshot), body, progress=progress)
        own = PackRef(pack_key(prepared.snapshot), stat.size_bytes, len(header), digest(header)), prepared.place
        sent = stat.size_bytes
    packs, tensors = placed(prepared.entries, prepared.digests, {}, own)
    part = Part(prepared.snapshot, 0, tuple(pack.key for pack in packs), prepared.tree, tensors).to_bytes()
    store.put(part_key(prepared.snapshot), [part])
    history = send_whole(store, prepared.history, prepared.snapshot)
    return Manifest(
        run_id=run_id,
        snapshot=prepared.snapshot,
        parent=None,
        committed=SYSTEM_CLOCK.wall(),
        parts=(PartRef(part_key(prepared.snapshot), len(part), digest(part)),),
        packs=packs,
        history=history,
        uploaded_bytes=sent + len(part) + sum(one.length for one in history),
        step=contents.step,
        epoch=contents.epoch,
        reason="manual",
        created=created,
        data_bytes=prepared.place.data_bytes,
        latest=prepared.history.latest(),
        best=prepared.history.bests(),
        evaluated=contents.evaluated,
        arguments=contents.arguments,
        environment=contents.environment,
        timings={"upload": SYSTEM_CLOCK.now() - began},
    )


def _claim(store: Store, prepared: _Prepared, name: str) -> None:
    """Only now: whoever starts a training there meanwhile has the run, and this ends."""
    try:
        holder = Holder(host=platform.node())
        arguments = {"pushed": name, _CONTENT: prepared.content}
        claim(store, ATTEMPT, holder, "start", created=SYSTEM_CLOCK.wall(), arguments=arguments)
    except AlreadyExists:
        _check_free(store, prepared)
    write_base(store, Base(ATTEMPT, None, "start"))


def _commit(store: Store, manifest: Manifest) -> None:
    try:
        commit(store, manifest)
    except Superseded as error:
        cause = "a training claimed it meanwhile, and began from scratch"
        raise AlreadyExists("push", store.uri, cause, hint=_ELSEWHERE) from error


def _release(store: Store, snapshot: SnapshotId) -> None:
    beat = read_heartbeat(store, ATTEMPT)
    if beat is None or not beat.released:
        beat = Heartbeat(ATTEMPT, 1, SYSTEM_CLOCK.wall(), released=True, last_committed=str(snapshot), ended="pushed")
        write_heartbeat(store, beat)
