"""Deletes what retention says, in an order that may be cut anywhere.

1. look; 2. record each snapshot as pruned; 3. delete its manifest; 4. look again, and put back what somebody has begun
to need meanwhile; 5. delete the packs that no manifest names; 6. give up what dead writers left unfinished.

Who claims, or pins, writes first and then looks whether the manifest is there; we delete the manifest first and then
look what was written. So one sees the other. A manifest that is there counts, whatever record says that it was pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from spotckpt.config import Keep
from spotckpt.deadline import SYSTEM_CLOCK, Clock
from spotckpt.errors import Corrupt, NotFound, Pruned, SnapshotError, StoreError
from spotckpt.snapshot.catalog import read_catalog
from spotckpt.snapshot.fetch import read_manifests, read_tombstone
from spotckpt.snapshot.keys import PACKS_PREFIX, PROBES_PREFIX, SnapshotId, manifest_key, parse_key, tombstone_key
from spotckpt.snapshot.lazy import in_parallel
from spotckpt.snapshot.manifest import MAX_MANIFEST_BYTES, Manifest
from spotckpt.snapshot.pins import read_pins
from spotckpt.snapshot.records import Tombstone
from spotckpt.snapshot.retention import Header, Plan, Seen, forgotten, loose, needed, plan, stale, unnamed
from spotckpt.store.base import Stat, Store, Unfinished

Known = dict[SnapshotId, Header]
"""What was read of manifests, which never change: whoever prunes again and again passes the same one."""

_NOTHING_DELETED = "nothing is deleted meanwhile: see spotckpt verify"


@dataclass
class Pruning:
    """What was deleted, or would be, and why.

    Attributes:
        plan: of the snapshots.
        objects: packs and parts: key → why.
        freed_bytes: their bytes.
        uploads: unfinished writes that are given up.
        notes: what could not be done, though all else was.
    """

    plan: Plan
    objects: dict[str, str] = field(default_factory=dict)
    freed_bytes: int = 0
    uploads: list[Unfinished] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.plan.drop or self.objects or self.uploads)


def look(store: Store, known: Known) -> Seen:
    """Reads what retention has to know, and adds to `known` what it had not.

    Raises:
        SnapshotError: a record or manifest cannot be read, so that nobody can say what is needed.
    """
    catalog = read_catalog(store)
    if catalog.missing:
        lost = manifest_key(max(catalog.missing))
        raise Corrupt(f"{lost} is missing, though it was committed", hint="nothing is deleted: see spotckpt ls")
    new = [one for one in catalog.snapshots if one not in known]
    for one, manifest in read_manifests(store, new).items():
        if isinstance(manifest, Pruned):  # by somebody else, since it was listed
            continue
        if isinstance(manifest, SnapshotError):
            raise type(manifest)(f"{manifest}", hint=_NOTHING_DELETED) from manifest
        known[one] = Header.of(manifest, catalog.written.get(manifest_key(one), float("inf")))
    headers = {one: known[one] for one in catalog.snapshots if one in known}
    pins = {name: pin.id for name, pin in read_pins(store).items()}
    now = max([store.time(), *(time for time in catalog.written.values() if time != float("inf"))])
    return Seen(catalog, headers, pins, now)


def preview(store: Store, policy: Keep | None, *, abandoned: bool = False) -> Pruning:
    """What `prune` would delete; changes nothing. Raises as `look` does."""
    seen = look(store, {})
    decided = plan(seen, policy, abandoned=abandoned)
    left = replace(seen, headers={one: seen.headers[one] for one in decided.keep})
    pruning = Pruning(decided)
    _find_loose(store, left, pruning, pruned=decided.drop)
    _find_stale(store, left, pruning)
    return pruning


def prune(
    store: Store,
    policy: Keep | None,
    *,
    abandoned: bool = False,
    known: Known | None = None,
    may_delete: Callable[[], None] = lambda: None,
    clock: Clock = SYSTEM_CLOCK,
) -> Pruning:
    """Deletes the snapshots that the policy does not keep, then what belongs to no snapshot.

    Idempotent, and may be cut anywhere and run by several at once: what is left the next one deletes.

    Args:
        store: rooted at the run.
        policy: None deletes no snapshot; what is left over goes all the same.
        abandoned: as in `plan`.
        known: see `Known`.
        may_delete: called before each request that deletes something; raises to end it.
        clock: for the times in the records.

    Raises:
        Denied: the credentials do not allow to delete; if they allow nothing, nothing was recorded either.
        SnapshotError: as `look` does; nothing was deleted.
    """
    known = {} if known is None else known
    seen = _look_and_mend(store, known)
    pruning = Pruning(plan(seen, policy, abandoned=abandoned))
    if pruning.plan.drop:
        kept = _delete_manifests(store, pruning.plan.drop, may_delete, clock)
        seen = _look_and_mend(store, known)
        if back := needed(seen) & kept.keys():
            _put_back(store, back, kept)
            pruning.plan = _without(pruning.plan, back)
            seen = look(store, known)
    _find_loose(store, seen, pruning)
    _delete(store, pruning.objects, may_delete)
    _find_stale(store, seen, pruning)
    for write in pruning.uploads:
        may_delete()
        _try(pruning, f"{write.key} of an unfinished upload", lambda write=write: store.discard(write))  # type: ignore[misc]
    for gone in pruning.plan.drop:
        known.pop(gone, None)
    return pruning


def _delete_manifests(
    store: Store, drop: Mapping[SnapshotId, str], may_delete: Callable[[], None], clock: Clock
) -> dict[SnapshotId, bytes]:
    """Returns what was deleted, to be put back if need be."""
    may_delete()
    one = next(iter(drop))
    nobody = SnapshotId.new(one.attempt, one.sequence, one.step)
    store.delete([tombstone_key(nobody)])  # nothing is there: asks whether deleting is allowed at all

    def condemn(snapshot: SnapshotId) -> bytes:
        try:
            data = store.read(manifest_key(snapshot), limit_bytes=MAX_MANIFEST_BYTES)
        except NotFound:
            return b""  # another pruning was faster
        record = Tombstone(str(snapshot), clock.wall(), drop[snapshot], data.decode())
        store.put(tombstone_key(snapshot), [record.to_bytes()])
        return data

    kept = dict(zip(drop, in_parallel(condemn, drop), strict=True))
    _delete(store, map(manifest_key, drop), may_delete)
    return {snapshot: data for snapshot, data in kept.items() if data}


def _look_and_mend(store: Store, known: Known) -> Seen:
    """`look`, and puts back what a pruning that was killed should have: what somebody began to need meanwhile."""
    seen = look(store, known)
    lost = [one for one in needed(seen) - seen.headers.keys() if one in seen.catalog.pruned]
    mended = [_mend(store, one) for one in lost]
    return look(store, known) if any(mended) else seen


def _mend(store: Store, snapshot: SnapshotId) -> bool:
    """Whether all that its manifest names is still there, so that it could be put back."""
    tombstone = read_tombstone(store, snapshot)
    if tombstone is None:
        return False
    key, data = manifest_key(snapshot), tombstone.manifest.encode()
    manifest = Manifest.from_bytes(data, key=key)
    for name, length in manifest.objects:
        try:
            if store.stat(name).size_bytes != length:
                return False
        except NotFound:
            return False
    _put_back(store, [snapshot], {snapshot: data})
    return True


def _put_back(store: Store, wanted: Iterable[SnapshotId], kept: Mapping[SnapshotId, bytes]) -> None:
    for one in wanted:
        store.put_if_absent(manifest_key(one), kept[one])
        store.delete([tombstone_key(one)])


def _without(plan: Plan, back: Collection[SnapshotId]) -> Plan:
    drop = {one: why for one, why in plan.drop.items() if one not in back}
    return Plan({**plan.keep, **dict.fromkeys(back, "somebody began to need it meanwhile")}, drop)


def _find_loose(store: Store, seen: Seen, pruning: Pruning, *, pruned: Iterable[SnapshotId] = ()) -> None:
    found = unnamed(seen, store.list(PACKS_PREFIX))
    owners = sorted({_owner(stat) for stat in found} - {*pruned})
    recorded = zip(owners, in_parallel(lambda one: store.exists(tombstone_key(one)), owners), strict=True)
    pruning.objects = loose(seen, found, {*pruned, *(one for one, is_there in recorded if is_there)})
    probes = store.list(PROBES_PREFIX)
    pruning.objects |= forgotten(seen, probes)
    pruning.freed_bytes = sum(stat.size_bytes for stat in (*found, *probes) if stat.key in pruning.objects)


def _owner(stat: Stat) -> SnapshotId:
    key = parse_key(stat.key)
    assert key is not None and key.snapshot is not None
    return key.snapshot


def _find_stale(store: Store, seen: Seen, pruning: Pruning) -> None:
    def find() -> None:
        pruning.uploads = stale(seen, store.unfinished())

    _try(pruning, "unfinished uploads", find)


def _try(pruning: Pruning, what: str, act: Callable[[], None]) -> None:
    """What not every store and not all credentials allow, and a lifecycle rule does in its place."""
    try:
        act()
    except StoreError as error:
        pruning.notes.append(f"{what} cannot be swept: {error}")


def _delete(store: Store, keys: Iterable[str], may_delete: Callable[[], None]) -> None:
    wanted: Sequence[str] = sorted(keys)
    if wanted:
        may_delete()
        store.delete(wanted)
