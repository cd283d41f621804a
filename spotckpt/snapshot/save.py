"""Writing a snapshot: the bytes first, the manifest last, and then the question whether we still own the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import Corrupt, NotFound, OutcomeUnknown, SnapshotError, StoreError, Superseded
from spotckpt.snapshot.continuing import continue_history
from spotckpt.snapshot.envelope import digest
from spotckpt.snapshot.fetch import read_manifest, read_part
from spotckpt.snapshot.hashing import Hashing
from spotckpt.snapshot.keys import SnapshotId, claim_key, manifest_key, pack_key, part_key
from spotckpt.snapshot.losses import Lost
from spotckpt.snapshot.manifest import Manifest, PackRef, PartRef
from spotckpt.snapshot.pack import Layout, layout
from spotckpt.snapshot.part import Part, TensorEntry
from spotckpt.snapshot.reuse import (
    PROBE_BYTES,
    Place,
    Previous,
    candidates,
    is_probed_whole,
    placed,
    previous_of,
    ranges,
    worth_keeping,
)
from spotckpt.snapshot.staged import Staged
from spotckpt.store.base import Buffer, Progress, Reading, Stat, Store

PUT_WITHIN_S = 600.0
"""A manifest is put so soon after the look for a later claim, or not at all: whoever sleeps in between looks again."""


def _nothing(_: object = None) -> None:
    pass


def find_previous(
    store: Store,
    snapshot: SnapshotId,
    *,
    run_id: str,
    say: Callable[[str], None],
    deadline: Deadline | None = None,
) -> Previous | None:
    """What a child of that snapshot may refer to, for whoever did not upload it.

    What cannot be read is said and is None: the child is saved all the same, wholly.
    """
    try:
        manifest = read_manifest(store, snapshot, run_id=run_id, deadline=deadline)
        return previous_of(manifest, read_part(store, manifest, deadline=deadline))
    except (SnapshotError, StoreError) as error:
        say(f"all of the next snapshot is uploaded, as the one before cannot be read: {error}")
        return None


def upload(
    store: Store,
    staged: Staged,
    data: memoryview,
    *,
    run_id: str,
    parent: str | SnapshotId | None,
    previous: Previous | None = None,
    lost: Lost | None = None,
    deadline: Deadline | None = None,
    progress: Progress | None = None,
    planned: Callable[[int], None] = _nothing,
    hashed: Callable[[int], None] = _nothing,
    still_valid: Callable[[], None] = _nothing,
    say: Callable[[str], None] = _nothing,
    clock: Clock = SYSTEM_CLOCK,
) -> tuple[Manifest, Previous]:
    """Sends the tensors that changed, the part and the new metrics of a staged snapshot. Until `commit`, it does not
    exist.

    Never for a snapshot that may have been committed: a second upload may choose other tensors to send, and so write
    other bytes to the same keys.

    Args:
        store: rooted at the run.
        staged: what the trainer handed over.
        data: the data section, and the rows of the metric history behind it.
        run_id: from `run.json`.
        parent: the snapshot that this one continues.
        lost: for the manifest.
        previous: what is known of the parent; None sends everything.
        deadline: for each request.
        progress: told the bytes sent.
        planned: told how many bytes of tensors and metrics will be sent, as soon as that is known.
        hashed: told how many tensor bytes went through BLAKE3.
        still_valid: called between the steps; raises if the slot has changed, and nothing is committed then.
        say: told that an old pack is gone.
        clock: for the manifest's times.

    Returns:
        The manifest to commit, and, for when that is done, what a child may refer to.

    Raises:
        Corrupt: the data is not what `staged` describes.
        Discontinued: as `continue_history`.
        StoreError: a request failed; packs without a manifest may be left.
    """
    still_valid()
    if len(data) != staged.slot_bytes:
        raise Corrupt(f"{staged.id}: {len(data)} bytes are staged, not {staged.slot_bytes}", hint="stage it again")
    if isinstance(parent, str):
        parent = SnapshotId.parse(parent)
    assert previous is None or previous.snapshot == parent, "only a parent's packs are sure to stay"
    began = clock.now()
    rows = continue_history(
        store,
        staged.history,
        data[staged.data_bytes :],
        parent=parent,
        previous=previous,
        run_id=run_id,
        deadline=deadline,
    )
    tensors = _Tensors(staged, data[: staged.data_bytes], hashed)
    kept = {} if previous is None else tensors.unchanged(previous)
    compared = clock.now()
    job = _Job(store, tensors, deadline, progress, lambda count: planned(count + rows.length), still_valid)
    sent = job.send(kept)
    history = rows.send(store, staged.snapshot, deadline=deadline, progress=progress)
    if kept and (gone := _first_gone(store, kept, deadline)):
        say(f"{gone} is not there any more: all of {staged.id} is sent")
        kept = {}
        sent = job.send(kept)
    still_valid()
    timings = {**staged.timings, "digest": compared - began, "upload": clock.now() - compared}
    manifest = Manifest(
        run_id=run_id,
        snapshot=staged.snapshot,
        parent=parent,
        committed=clock.wall(),
        parts=(sent.part_ref,),
        packs=sent.packs,
        history=history,
        uploaded_bytes=sent.size_bytes + rows.length,
        lost=lost,
        **{**staged.facts(), "timings": timings},
    )
    return manifest, previous_of(manifest, sent.part, tensors.probes)


class _Tensors:
    """The staged tensors and what is known of their bytes; none is hashed twice, but for its probe.

    Attributes:
        table: as staged.
        probes: digests of their first bytes.
        digests: of whole tensors, by index, so far.
    """

    def __init__(self, staged: Staged, data: memoryview, hashed: Callable[[int], None]) -> None:
        self.staged = staged
        self.table = staged.tensors
        self._data = data
        self.hashed = hashed
        self.probes = self._digests(self.table, PROBE_BYTES)
        self.digests = {i: self.probes[i] for i, entry in enumerate(self.table) if is_probed_whole(entry)}

    def _digests(self, entries: Iterable[TensorEntry], most: int | None = None) -> list[str]:
        """Of each, or of its first bytes."""
        spans = [
            self._data[chunk.offset : chunk.offset + chunk.length][:most] for entry in entries for chunk in entry.chunks
        ]
        self.hashed(sum(map(len, spans)))
        # on one core: the others are the training's, and one is faster than most networks
        return [blake3(span).hexdigest() for span in spans]

    def unchanged(self, previous: Previous) -> dict[int, Place]:
        """Those to refer to in the parent's packs. Only what may be reused is read here; the rest when it is sent."""
        likely = worth_keeping(candidates(self.table, self.probes, previous))
        todo = [index for index in likely if index not in self.digests]
        self.digests.update(zip(todo, self._digests(self.table[index] for index in todo), strict=True))
        return worth_keeping(
            {index: place for index, place in likely.items() if self.digests[index] == place.chunk.digest}
        )

    def buffers(self, order: Sequence[int]) -> list[memoryview]:
        """The bytes of these tensors, in that order."""
        return [self._data[start:end] for start, end in ranges(self.table, order)]


@dataclass(frozen=True)
class _Sent:
    packs: tuple[PackRef, ...]
    part: Part
    part_ref: PartRef
    size_bytes: int


@dataclass(frozen=True)
class _Job:
    store: Store
    tensors: _Tensors
    deadline: Deadline | None
    progress: Progress | None
    planned: Callable[[int], None]
    still_valid: Callable[[], None]

    def send(self, kept: Mapping[int, Place]) -> _Sent:
        """Sends the tensors that are not kept, and the part."""
        self.still_valid()
        own = self._send_pack([index for index in range(len(self.tensors.table)) if index not in kept])
        self.still_valid()
        packs, table = placed(self.tensors.table, self.tensors.digests, kept, own)
        snapshot = self.tensors.staged.snapshot
        part = Part(snapshot, 0, tuple(pack.key for pack in packs), self.tensors.staged.tree, table)
        body = part.to_bytes()
        self._put(part_key(snapshot), [body])
        reference = PartRef(part_key(snapshot), len(body), digest(body))
        return _Sent(packs, part, reference, len(body) + (own[0].length if own else 0))

    def _send_pack(self, indices: Sequence[int]) -> tuple[PackRef, Layout] | None:
        if not indices:
            self.planned(0)
            return None
        entries = [self.tensors.table[index] for index in indices]
        whole = len(indices) == len(self.tensors.table)
        staged = self.tensors.staged
        place = staged.layout() if whole else layout([staged.specs[index] for index in indices])
        self.planned(place.data_bytes)
        header = len(place.header)
        todo = [n for n in place.order if indices[n] not in self.tensors.digests]
        hashing = Hashing([(header + place.offsets[n], entries[n].chunks[0].length) for n in todo], self.tensors.hashed)
        key = pack_key(staged.snapshot)
        bodies = self.tensors.buffers([indices[n] for n in place.order])
        stat = self._put(key, [place.header, *bodies], hashing)
        self.tensors.digests.update(zip((indices[n] for n in todo), hashing.digests(), strict=True))
        return PackRef(key, stat.size_bytes, header, digest(place.header)), place

    def _put(self, key: str, buffers: Sequence[Buffer], reading: Reading | None = None) -> Stat:
        length = sum(len(buffer) for buffer in buffers)
        stat = self.store.put(key, buffers, deadline=self.deadline, progress=self.progress, reading=reading)
        if stat.size_bytes != length:
            raise Corrupt(f"{key}: the store reports {stat.size_bytes} bytes of {length}", hint="nothing was committed")
        return stat


def _first_gone(store: Store, kept: Mapping[int, Place], deadline: Deadline | None) -> str | None:
    """An old pack that is missing or has another size; looked at last, when all else is there for the commit."""
    for pack in dict.fromkeys(place.pack for place in kept.values()):
        try:
            if store.stat(pack.key, deadline=deadline).size_bytes == pack.length:
                continue
        except NotFound:
            pass
        return pack.key
    return None


def commit(store: Store, manifest: Manifest, *, deadline: Deadline | None = None) -> None:
    """Makes the snapshot exist. Returning means acknowledged: every later attempt will find it.

    Whether we still own the run is asked before, too: packs that the manifest refers to stay while we do, and for a
    while after, so that none is ever missing of what this puts.

    Idempotent: after an error, calling it again with the very same manifest finishes what had begun.

    Raises:
        Superseded: a later attempt has claimed the run; if it is committed all the same, that one may not have seen it.
        OutcomeUnknown: the manifest may or may not be there: clean up nothing.
        AlreadyExists: another manifest is at this key.
    """
    soon = store.until(deadline).within(PUT_WITHIN_S)
    if is_superseded(store, manifest.snapshot.attempt, deadline=soon):
        raise Superseded(f"attempt {manifest.snapshot.attempt + 1} owns the run now; {manifest.snapshot} is not sent")
    store.put_if_absent(manifest_key(manifest.snapshot), manifest.to_bytes(), deadline=soon)
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
