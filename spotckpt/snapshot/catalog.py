"""What a run's bucket holds, read in a few requests: records and ids, no manifests and no tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

from spotckpt.deadline import Deadline
from spotckpt.errors import Corrupt, LimitExceeded, NotFound, NothingRestorable, SnapshotError
from spotckpt.snapshot.keys import (
    ATTEMPTS_PREFIX,
    RUN_KEY,
    SNAPSHOTS_PREFIX,
    TOMBSTONES_PREFIX,
    KeyKind,
    SnapshotId,
    base_key,
    claim_key,
    heartbeat_key,
    manifest_key,
    parse_key,
)
from spotckpt.snapshot.lazy import Listed, Records, in_parallel
from spotckpt.snapshot.records import MAX_RECORD_BYTES, Base, Claim, Heartbeat, RunRecord
from spotckpt.store.base import Store

R = TypeVar("R")

FIRST_ATTEMPT = 1


@dataclass(frozen=True)
class Catalog:
    """The records of a run and the ids of its snapshots.

    Attributes:
        run: None if the run does not exist.
        highest: the highest attempt that left a record, 0 if none.
        claims, bases, heartbeats: by attempt, those that are there and readable; read when they are asked for.
        snapshots: committed: their manifests were listed, or found when a heartbeat named them.
        missing: named by a heartbeat as committed, not there, and not recorded as pruned.
        pruned: recorded as pruned; of those that are in `snapshots` too, the pruning did not get so far. Listed when
            it is asked for.
        problems: records that are there and cannot be read, by key, of those that were read so far.
        strangers: keys in these folders that are not ours; never followed.
        written: when manifests and records were written, by key: seconds by the store's own clock.
    """

    run: RunRecord | None = None
    highest: int = 0
    claims: Mapping[int, Claim] = field(default_factory=dict)
    bases: Mapping[int, Base] = field(default_factory=dict)
    heartbeats: Mapping[int, Heartbeat] = field(default_factory=dict)
    snapshots: frozenset[SnapshotId] = frozenset()
    missing: frozenset[SnapshotId] = frozenset()
    pruned: Collection[SnapshotId] = frozenset()
    problems: Mapping[str, SnapshotError] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()
    written: Mapping[str, float] = field(default_factory=dict)

    def of_attempt(self, attempt: int) -> list[SnapshotId]:
        """The attempt's snapshots, newest first; one that is missing stands where it should be."""
        return list(self._by_attempt.get(attempt, ()))

    @cached_property
    def _by_attempt(self) -> Mapping[int, list[SnapshotId]]:
        found: dict[int, list[SnapshotId]] = {}
        for one in sorted(self.snapshots | self.missing, key=lambda one: (one.attempt, one.sequence), reverse=True):
            found.setdefault(one.attempt, []).append(one)
        return found


def read_catalog(store: Store, *, before: int | None = None, everything: bool = False) -> Catalog:
    """Lists each folder once and reads the records of the newest attempts; others are read when they are asked for.

    A listing that shows itself to be stale is asked for again, and the answers are joined: it is empty, it lacks the
    caller's own claim, or a heartbeat names a commit that it lacks. What it lacks still is asked for by name.

    Args:
        store: rooted at the run.
        before: the caller's own attempt. Claims have no gaps: those below it are read by name, whatever the listing
            says.
        everything: read all records at once, for who shows them.

    Raises:
        NothingRestorable: it is a fork that was not completed.
        FutureFormat: a record of a newer version; so does asking the catalog for one.
        StoreError: a request failed.
    """
    # snapshots first: whatever they show, the base of its attempt was written before it
    snapshots, attempts = _Listing(store, SNAPSHOTS_PREFIX), _Listing(store, ATTEMPTS_PREFIX)
    if before is not None and claim_key(before) not in attempts.names:
        attempts.look()
    records = _Records(store, attempts)
    records.read_head(top=attempts.highest if before is None else before - 1, committed=snapshots.attempts)
    if everything:
        records.heartbeats.load_all()
    named = {beat.last_id for beat in records.heartbeats.known.values() if beat.last_id}
    if not named <= snapshots.ids:
        snapshots.look()
    if records.run is not None and records.run.forked_from and FIRST_ATTEMPT not in attempts.of_kind("claim"):
        require_complete(store, records.run)
    lost = {one for one in named - snapshots.ids if not store.exists(manifest_key(one))}
    pruned = Listed(lambda: _Listing(store, TOMBSTONES_PREFIX, again=False).tombstones)
    return Catalog(
        run=records.run,
        highest=records.highest,
        claims=dict(records.claims) if everything else records.claims,
        bases=dict(records.bases) if everything else records.bases,
        heartbeats=dict(records.heartbeats) if everything else records.heartbeats,
        snapshots=frozenset(snapshots.ids | named - lost),
        missing=frozenset(one for one in lost if one not in pruned),
        pruned=pruned,
        problems=records.problems,
        strangers=(*snapshots.strangers, *attempts.strangers),
        written={**snapshots.written, **attempts.written},
    )


class _Listing:
    """The keys below a prefix. One that is empty is asked for twice: that is the answer which changes most."""

    def __init__(self, store: Store, prefix: str, *, again: bool = True) -> None:
        self._store = store
        self._prefix = prefix
        self.names: set[str] = set()
        self.written: dict[str, float] = {}
        self.look()
        if not self.names and again:
            self.look()

    def look(self) -> None:
        """Adds what the store lists now."""
        self.written.update((stat.key, stat.modified) for stat in self._store.list(self._prefix))
        self.names = set(self.written)
        parsed = {name: parse_key(name) for name in sorted(self.names)}
        self.strangers = tuple(name for name, key in parsed.items() if key is None)
        self.keys = [key for key in parsed.values() if key is not None]
        self.ids = {key.snapshot for key in self.keys if key.kind == "manifest" and key.snapshot}
        self.attempts = {key.attempt for key in self.keys}

    @property
    def tombstones(self) -> set[SnapshotId]:
        """The snapshots that have one."""
        return {key.snapshot for key in self.keys if key.kind == "tombstone" and key.snapshot}

    @property
    def highest(self) -> int:
        """The highest attempt that any key belongs to, 0 if none."""
        return max(self.attempts, default=0)

    def of_kind(self, kind: KeyKind) -> set[int]:
        """The attempts that have such an object."""
        return {key.attempt for key in self.keys if key.kind == kind}


class _Records:
    """Reads records and keeps those that cannot be read as problems: one bad record must not hide the others."""

    def __init__(self, store: Store, attempts: _Listing) -> None:
        self._store = store
        self._attempts = attempts
        self.run: RunRecord | None = None
        self.problems: dict[str, SnapshotError] = {}
        self.claims = self._of("claim", claim_key, Claim.from_bytes)
        self.bases = self._of("base", base_key, Base.from_bytes)
        self.heartbeats = self._of("heartbeat", heartbeat_key, Heartbeat.from_bytes)

    def _of(self, kind: KeyKind, name: Callable[[int], str], parse: Callable[..., R]) -> Records[R]:
        return Records(self._attempts.of_kind(kind), lambda number: self._one(name(number), parse))

    def _one(self, key: str, parse: Callable[..., R]) -> R | None:
        try:
            return _read(self._store, key, parse, None)
        except (Corrupt, LimitExceeded) as error:
            self.problems[key] = error
            return None

    def read_head(self, *, top: int, committed: set[int]) -> None:
        """`run.json`, and the records of the last attempt up to `top` that had an effect, and of those after it.

        Args:
            top: the attempt whose successor chooses; what a stale listing could hide of the last ones is read by name.
            committed: the attempts that have snapshots.
        """
        effective = {number for number in self._attempts.of_kind("base") | committed if number <= top}
        last = max(effective, default=0)
        by_name = {top, *range(self._attempts.highest + 1, top + 1)}

        def load(records: Records[Any], first: int) -> None:
            records.load(number for number in range(max(1, first), top + 1) if number in by_name or number in records)

        def load_run() -> None:
            self.run = self._one(RUN_KEY, RunRecord.from_bytes)

        # whether an attempt without effect changed anything, its claim tells
        acts: list[Callable[[], None]] = [
            load_run,
            partial(load, self.bases, last),
            partial(load, self.heartbeats, last),
            partial(load, self.claims, last + 1),
        ]
        in_parallel(lambda act: act(), acts)

    @property
    def highest(self) -> int:
        """The highest attempt that left a record."""
        by_name = {*self.claims.known, *self.bases.known, *self.heartbeats.known}
        damaged = {key.attempt for key in map(parse_key, self.problems) if key}
        return max(self._attempts.attempts | by_name | damaged, default=0)


def highest_attempt(store: Store) -> int:
    """The highest attempt that left anything under `attempts/`, 0 if none.

    Not only claims count: a number whose base or heartbeat is there must never be given out again. An answer that is
    too low does no harm: the claim that follows from it is taken.
    """
    return _Listing(store, ATTEMPTS_PREFIX).highest


def read_run(store: Store, *, deadline: Deadline | None = None) -> RunRecord | None:
    """`run.json`, or None if the run does not exist. Raises as `RunRecord.from_bytes` does."""
    return _read(store, RUN_KEY, RunRecord.from_bytes, deadline)


def run_missing(uri: str) -> Corrupt:
    """The error of a run that has objects, and no `run.json`."""
    hint = "put it back, from an older version or a copy of the bucket, or give another address"
    return Corrupt(f"{uri}/{RUN_KEY} is missing", hint=hint)


def require_complete(store: Store, run: RunRecord, *, deadline: Deadline | None = None) -> None:
    """A fork is nothing before it is complete, which its last object tells: the claim of its first attempt.

    Raises:
        NothingRestorable: it is not.
    """
    if run.forked_from and not store.exists(claim_key(FIRST_ATTEMPT), deadline=deadline):
        parent = run.forked_from[0]
        raise NothingRestorable(
            f"{store.uri} is a fork of {parent.uri}@{parent.snapshot} that was not completed",
            hint="wait, or run the same spotckpt fork again, which goes on with it",
        )


def read_heartbeat(store: Store, attempt: int, *, deadline: Deadline | None = None) -> Heartbeat | None:
    """The attempt's heartbeat, or None. Raises as `Heartbeat.from_bytes` does."""
    return _read(store, heartbeat_key(attempt), Heartbeat.from_bytes, deadline)


def read_claim(store: Store, attempt: int, *, deadline: Deadline | None = None) -> Claim | None:
    """The attempt's claim, or None. Raises as `Claim.from_bytes` does."""
    return _read(store, claim_key(attempt), Claim.from_bytes, deadline)


def _read(store: Store, key: str, parse: Callable[..., R], deadline: Deadline | None) -> R | None:
    try:
        return parse(store.read(key, limit_bytes=MAX_RECORD_BYTES, deadline=deadline), key=key)
    except NotFound:
        return None
