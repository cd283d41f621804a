"""Beginning a run with a snapshot of another: the tensors stay where they are, and only tables are written.

1. pin the snapshot in the run that it is of, so that no pruning takes it; 2. put the new run's `run.json`, which says
what it is to be; 3. write part and manifest under the id that `run.json` names; 4. write base and heartbeat of a first
attempt, which is over; 5. put that attempt's claim. A fork without a claim is not complete: nobody reads or trains it
(`catalog.require_complete`), and forking again goes on where it was cut, since every byte follows from `run.json`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spotckpt.deadline import SYSTEM_CLOCK, Clock
from spotckpt.errors import AddressError, AlreadyExists, Corrupt, Denied, NotFound, StoreError, UsageError
from spotckpt.redact import redacted
from spotckpt.snapshot.attempts import write_base, write_heartbeat
from spotckpt.snapshot.catalog import FIRST_ATTEMPT, read_run, run_missing
from spotckpt.snapshot.continuing import send_whole
from spotckpt.snapshot.copying import copy_tensors
from spotckpt.snapshot.descent import Ancestor, path_between, uri_at
from spotckpt.snapshot.envelope import digest
from spotckpt.snapshot.fetch import read_manifest, read_part
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.keys import (
    ATTEMPTS_PREFIX,
    RUN_KEY,
    SNAPSHOTS_PREFIX,
    SnapshotId,
    claim_key,
    manifest_key,
    part_key,
    pin_key,
    shared_key,
    split_shared,
)
from spotckpt.snapshot.manifest import Manifest, PackRef, PartRef
from spotckpt.snapshot.open import WithAncestors, at
from spotckpt.snapshot.part import Part
from spotckpt.snapshot.pins import pin, read_pins
from spotckpt.snapshot.records import Base, Claim, Heartbeat, Holder, RunRecord, new_nonce
from spotckpt.snapshot.segments import SegmentRef
from spotckpt.store.base import Progress, Store
from spotckpt.store.conditions import require_conditions

_OTHER = "fork another snapshot"


@dataclass(frozen=True)
class Fork:
    """A fork that is complete.

    Attributes:
        record: its `run.json`.
        manifest: of its first snapshot.
    """

    record: RunRecord
    manifest: Manifest


@dataclass(frozen=True)
class Plan:
    """What is to be made.

    Attributes:
        source: the run, and where its own ancestors can be read.
        parent: its `run.json`.
        manifest: of the snapshot to begin with.
        destination: where to.
        overrides: arguments that have another value there, by name.
        copy: send every byte anew, so that nothing of the source is needed later.
    """

    source: WithAncestors
    parent: RunRecord
    manifest: Manifest
    destination: Store
    overrides: Mapping[str, Any]
    copy: bool

    @property
    def ancestors(self) -> tuple[Ancestor, ...]:
        """The source, then what it descends from."""
        nearest = Ancestor(self.parent.run_id, redacted(self.source.uri), str(self.manifest.snapshot), ".")
        return tuple(replace(one, path=self._path(one)) for one in (nearest, *self.parent.forked_from))

    def _path(self, ancestor: Ancestor) -> str | None:
        if self.copy or ancestor.path is None:
            return None
        uri = self.source.uri if ancestor.path == "." else uri_at(self.source.uri, ancestor.path)
        return None if uri is None else path_between(self.destination.uri, uri)

    @property
    def needed(self) -> set[str]:
        """The runs, by id, that hold what the snapshot is made of; the source always, as it may come to be."""
        holders = {split_shared(key)[0] for key, _ in self.manifest.objects}
        return {run_id or self.parent.run_id for run_id in holders} | {self.parent.run_id}

    def record(self, run_id: str, created: float) -> RunRecord:
        """A new `run.json`."""
        return RunRecord(
            run_id,
            created,
            forked_from=self.ancestors,
            forked_as=str(SnapshotId.new(FIRST_ATTEMPT, 0, self.manifest.step)),
            overrides={**self.parent.overrides, **self.overrides},
        )

    def is_made_by(self, record: RunRecord) -> bool:
        """Whether this is what that `run.json` says."""
        wanted = self.record(record.run_id, record.created)
        return (record.forked_from, record.overrides) == (wanted.forked_from, wanted.overrides)


def fork(
    source: WithAncestors,
    snapshot: SnapshotId,
    destination: Store,
    *,
    overrides: Mapping[str, Any] | None = None,
    copy: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    clock: Clock = SYSTEM_CLOCK,
) -> Fork:
    """Makes a run whose first snapshot is one of another run. May be cut anywhere, and repeated.

    Args:
        source: the run to fork.
        snapshot: which of its snapshots.
        destination: where the fork is to be; from `open_run_store`, as its keys lead into the source.
        overrides: arguments of the train function, by name, that have another value in the fork.
        copy: needs no pin in the source, and nothing of it later.
        progress: told the bytes that are copied.
        say: told when an earlier try is gone on with.
        clock: for the records' times.

    Raises:
        AlreadyExists: there is a run at the destination.
        AddressError: it is in another bucket, and `copy` is False.
        Denied: the source cannot be pinned, and `copy` is False.
        UsageError: an override of what is no argument of the run.
        SnapshotError: the snapshot cannot be read.
    """
    parent = read_run(source)
    manifest = read_manifest(source, snapshot, run_id=parent.run_id if parent else None)
    if parent is None:
        raise run_missing(source.uri)
    plan = Plan(source, parent, manifest, destination, dict(overrides or {}), copy)
    _check(plan)
    _require_objects(source, manifest)
    record = _begun(plan)
    if record is not None:
        say(f"going on with a fork of {record.forked_from[0].uri} that was not completed")
    else:
        record = _begin(plan, clock)
    made = _write_snapshot(plan, record, progress)
    _complete(destination, record, made)
    return Fork(record, made)


def _check(plan: Plan) -> None:
    if not plan.copy and plan.ancestors[0].path is None:
        raise AddressError(
            f"{plan.destination.uri} and {plan.source.uri} are not in one bucket, so they cannot share",
            hint="--copy sends every byte",
        )
    known = plan.manifest.arguments
    for name in plan.overrides:
        if name not in known:
            raise UsageError(
                f"{name} is no argument of the run, so it cannot be set",
                hint=f"its arguments are {', '.join(sorted(known)) or 'none: the train function takes only the run'}",
            )


def _begun(plan: Plan) -> RunRecord | None:
    """The `run.json` of an earlier try, if there is one that can be gone on with; None where there is nothing.

    Raises:
        AlreadyExists: there is something else.
    """
    store = plan.destination
    record = read_run(store)
    if record is None and not store.list(ATTEMPTS_PREFIX) and not store.list(SNAPSHOTS_PREFIX):
        return None
    if record is None or not record.forked_from or store.exists(claim_key(FIRST_ATTEMPT)):
        raise AlreadyExists("fork", store.uri, "there is a run already", hint="give another address")
    if not plan.is_made_by(record):
        other = f"{record.forked_from[0].uri}@{record.forked_from[0].snapshot}"
        cause = f"another fork, of {other}, was begun there and not completed"
        raise AlreadyExists("fork", store.uri, cause, hint="repeat that one, or give another address")
    if not plan.copy:
        _pin(plan, record.run_id)
    return record


def _begin(plan: Plan, clock: Clock) -> RunRecord:
    """Pins, then reserves the destination."""
    record = plan.record(_pinned_before(plan) or new_nonce(), clock.wall())
    if not plan.copy:
        _pin(plan, record.run_id)
    with contextlib.suppress(AlreadyExists):  # another was faster, and may be making the same
        plan.destination.put_if_absent(RUN_KEY, record.to_bytes())
    there = read_run(plan.destination)
    if there is not None and there.run_id != record.run_id and not plan.copy:
        with contextlib.suppress(StoreError):  # a pin that nobody needs does little harm
            plan.source.delete([pin_key(_pin_name(record.run_id))])
    if there != record:
        return _begun(plan) or record
    require_conditions(plan.destination, RUN_KEY, record.to_bytes())
    return record


def _pin_name(run_id: str) -> str:
    return f"fork-{run_id}"


def _pinned_before(plan: Plan) -> str | None:
    """The id that an earlier try, which did not come further than its pin, had for the run."""
    if plan.copy:
        return None
    for name, found in read_pins(plan.source).items():
        if found.fork == redacted(plan.destination.uri) and found.id == plan.manifest.snapshot:
            return name.removeprefix("fork-")
    return None


def _pin(plan: Plan, run_id: str) -> None:
    """Holds the snapshot, and those that its run's ancestors were forked at, where packs of theirs are needed."""
    for one in plan.ancestors:
        if one.run_id not in plan.needed:
            continue
        store = plan.source if one.run_id == plan.parent.run_id else plan.source.ancestor(one.run_id)
        try:
            pin(store, _pin_name(run_id), SnapshotId.parse(one.snapshot), fork=redacted(plan.destination.uri))
        except Denied as error:
            raise Denied(
                error.operation,
                at(store, error.key),
                f"{error.cause}; without a pin, pruning could delete what the fork shares",
                hint="--copy sends every byte, and needs no right to write there",
            ) from error


def _write_snapshot(plan: Plan, record: RunRecord, progress: Progress | None) -> Manifest:
    """Parts, packs if they are copied, and the manifest; the same bytes whenever it is repeated."""
    assert record.forked_as is not None
    first, store = SnapshotId.parse(record.forked_as), plan.destination
    packs: dict[str, PackRef] = {}
    parts: list[PartRef] = []
    for rank in range(plan.manifest.world_size):
        part, own = _part(plan, rank, first, progress)
        body = part.to_bytes()
        store.put(part_key(first, rank), [body])
        parts.append(PartRef(part_key(first, rank), len(body), digest(body)))
        packs |= {pack.key: pack for pack in own}
    history = _history(plan, first, progress)
    copied = sum(pack.length for pack in packs.values()) + sum(one.length for one in history)
    manifest = replace(
        plan.manifest,
        run_id=record.run_id,
        snapshot=first,
        parent=None,
        reason="fork",
        finished=False,
        committed=record.created,
        parts=tuple(parts),
        packs=tuple(packs.values()),
        history=history,
        uploaded_bytes=sum(part.length for part in parts) + (copied if plan.copy else 0),
        lost=None,
        overrides={**plan.manifest.overrides, **plan.overrides},
        timings={},
    )
    _require_objects(store, manifest)  # once more: only since the pin are they safe from a pruning
    store.put_if_absent(manifest_key(first), manifest.to_bytes())
    return manifest


def _require_objects(store: Store, manifest: Manifest) -> None:
    for key, length in manifest.objects:
        try:
            size_bytes = store.stat(key).size_bytes
        except NotFound as error:
            raise Corrupt(f"{at(store, key)} is missing", hint=_OTHER) from error
        if size_bytes != length:
            raise Corrupt(f"{at(store, key)} has {size_bytes} bytes, not {length}", hint=_OTHER)


def _part(plan: Plan, rank: int, first: SnapshotId, progress: Progress | None) -> tuple[Part, tuple[PackRef, ...]]:
    """The part under its new name, and the packs that the manifest is to name."""
    part = read_part(plan.source, plan.manifest, rank)
    if plan.copy:
        return copy_tensors(plan.source, part, plan.destination, first, progress)
    run_id = plan.parent.run_id
    packs = tuple(replace(pack, key=shared_key(run_id, pack.key)) for pack in plan.manifest.packs)
    return replace(part, snapshot=first, packs=tuple(shared_key(run_id, key) for key in part.packs)), packs


def _history(plan: Plan, first: SnapshotId, progress: Progress | None) -> tuple[SegmentRef, ...]:
    """The segments of the metric history that the manifest is to name."""
    if plan.copy:
        found = read_history(plan.source, plan.manifest)
        return send_whole(plan.destination, found, first, progress=progress)
    return tuple(replace(one, key=shared_key(plan.parent.run_id, one.key)) for one in plan.manifest.history)


def _complete(store: Store, record: RunRecord, manifest: Manifest) -> None:
    """The first attempt, its claim last."""
    write_base(store, Base(FIRST_ATTEMPT, None))
    beat = Heartbeat(
        FIRST_ATTEMPT,
        1,
        record.created,
        released=True,
        last_committed=record.forked_as,
        nonce=record.nonce,
        ended="forked",
    )
    write_heartbeat(store, beat)
    claim = Claim(FIRST_ATTEMPT, record.nonce, record.created, Holder(), arguments=manifest.arguments)
    store.put_if_absent(claim_key(FIRST_ATTEMPT), claim.to_bytes())
