"""What a run's bucket holds, read in a few requests: records and ids, no manifests and no tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from spotckpt.deadline import Deadline
from spotckpt.errors import Corrupt, LimitExceeded, NotFound, SnapshotError
from spotckpt.snapshot.keys import (
    ATTEMPTS_PREFIX,
    RUN_KEY,
    SNAPSHOTS_PREFIX,
    Key,
    SnapshotId,
    base_key,
    claim_key,
    heartbeat_key,
    manifest_key,
    parse_key,
)
from spotckpt.snapshot.records import MAX_RECORD_BYTES, Base, Claim, Heartbeat, RunRecord
from spotckpt.store.base import Store

T = TypeVar("T")
R = TypeVar("R")

READS_AT_ONCE = 8


@dataclass(frozen=True)
class Catalog:
    """The records of a run and the ids of its snapshots.

    Attributes:
        run: None if the run does not exist.
        claims, bases, heartbeats: by attempt, those that are there and readable.
        snapshots: committed: their manifests were listed, or found when a heartbeat named them.
        missing: named by a heartbeat as committed, and not there.
        problems: records that are there and cannot be read, by key.
        strangers: keys in these folders that are not ours; never followed.
    """

    run: RunRecord | None = None
    claims: Mapping[int, Claim] = field(default_factory=dict)
    bases: Mapping[int, Base] = field(default_factory=dict)
    heartbeats: Mapping[int, Heartbeat] = field(default_factory=dict)
    snapshots: frozenset[SnapshotId] = frozenset()
    missing: frozenset[SnapshotId] = frozenset()
    problems: Mapping[str, SnapshotError] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()

    @property
    def highest(self) -> int:
        """The highest attempt that left a record, 0 if none."""
        damaged = [key.attempt for key in map(parse_key, self.problems) if key]
        return max([*self.claims, *self.bases, *self.heartbeats, *damaged], default=0)

    def of_attempt(self, attempt: int) -> list[SnapshotId]:
        """The attempt's snapshots, newest first; one that is missing stands where it should be."""
        return list(self._by_attempt.get(attempt, ()))

    @cached_property
    def _by_attempt(self) -> Mapping[int, list[SnapshotId]]:
        found: dict[int, list[SnapshotId]] = {}
        for one in sorted(self.snapshots | self.missing, reverse=True):
            found.setdefault(one.attempt, []).append(one)
        return found


def read_catalog(store: Store, *, before: int | None = None, deadline: Deadline | None = None) -> Catalog:
    """Lists and reads the records.

    A listing is asked for twice and the answers are joined, so that one that is empty or stale once hides nothing;
    what a heartbeat calls committed and no listing shows is asked for by name.

    Args:
        store: rooted at the run.
        before: the caller's own attempt: claims below it are read by name, whatever the listing says.
        deadline: for each request.

    Raises:
        FutureFormat: a record of a newer version.
        StoreError: a request failed.
    """
    # snapshots first: whatever they show, the base of its attempt was written before it
    listed, strangers = list_keys(store, (SNAPSHOTS_PREFIX, ATTEMPTS_PREFIX), deadline=deadline)
    numbers = {key.attempt for key in listed if key.kind in ("claim", "base", "heartbeat")}
    claims = {key.attempt for key in listed if key.kind == "claim"} | set(range(1, before or 1))
    bases = {key.attempt for key in listed if key.kind == "base"}
    beats = {key.attempt for key in listed if key.kind == "heartbeat"}
    newest = {before - 1} if before and before > 1 else {max(numbers)} if numbers else set()
    reader = _Reader(store, deadline)
    found = Catalog(
        run=reader.one(RUN_KEY, RunRecord.from_bytes),
        claims=reader.each(claims, claim_key, Claim.from_bytes),
        bases=reader.each(bases | newest, base_key, Base.from_bytes),
        heartbeats=reader.each(beats | newest, heartbeat_key, Heartbeat.from_bytes),
        snapshots=frozenset(key.snapshot for key in listed if key.kind == "manifest" and key.snapshot),
        problems=reader.problems,
        strangers=strangers,
    )
    return _with_named(store, found, deadline)


def _with_named(store: Store, catalog: Catalog, deadline: Deadline | None) -> Catalog:
    named = {beat.last_id for beat in catalog.heartbeats.values() if beat.last_id} - catalog.snapshots
    if not named:
        return catalog
    there = {one for one in named if store.exists(manifest_key(one), deadline=deadline)}
    return replace(catalog, snapshots=catalog.snapshots | there, missing=frozenset(named - there))


def list_keys(
    store: Store, prefixes: Iterable[str], *, deadline: Deadline | None = None
) -> tuple[list[Key], tuple[str, ...]]:
    """The keys of ours below the prefixes, each listed twice and joined, and the names of all other objects there."""
    names = sorted(
        {stat.key for prefix in prefixes for _ in range(2) for stat in store.list(prefix, deadline=deadline)}
    )
    parsed = [(name, parse_key(name)) for name in names]
    return [key for _, key in parsed if key], tuple(name for name, key in parsed if key is None)


def highest_attempt(store: Store, *, deadline: Deadline | None = None) -> int:
    """The highest attempt that left anything under `attempts/`, 0 if none.

    Not only claims count: a number whose base or heartbeat is there must never be given out again.
    """
    keys, _ = list_keys(store, (ATTEMPTS_PREFIX,), deadline=deadline)
    return max((key.attempt for key in keys), default=0)


def read_run(store: Store, *, deadline: Deadline | None = None) -> RunRecord | None:
    """`run.json`, or None if the run does not exist. Raises as `RunRecord.from_bytes` does."""
    return _read(store, RUN_KEY, RunRecord.from_bytes, deadline)


def read_heartbeat(store: Store, attempt: int, *, deadline: Deadline | None = None) -> Heartbeat | None:
    """The attempt's heartbeat, or None. Raises as `Heartbeat.from_bytes` does."""
    return _read(store, heartbeat_key(attempt), Heartbeat.from_bytes, deadline)


def read_claim(store: Store, attempt: int, *, deadline: Deadline | None = None) -> Claim | None:
    """The attempt's claim, or None. Raises as `Claim.from_bytes` does."""
    return _read(store, claim_key(attempt), Claim.from_bytes, deadline)


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results in order, some requests at a time; the first error is raised."""
    with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="spotckpt-read") as pool:
        return list(pool.map(function, items))


def _read(store: Store, key: str, parse: Callable[..., R], deadline: Deadline | None) -> R | None:
    try:
        return parse(store.read(key, limit_bytes=MAX_RECORD_BYTES, deadline=deadline), key=key)
    except NotFound:
        return None


class _Reader:
    """Reads records and keeps those that cannot be read as problems: one bad record must not hide the others."""

    def __init__(self, store: Store, deadline: Deadline | None) -> None:
        self.store = store
        self.deadline = deadline
        self.problems: dict[str, SnapshotError] = {}

    def one(self, key: str, parse: Callable[..., R]) -> R | None:
        try:
            return _read(self.store, key, parse, self.deadline)
        except (Corrupt, LimitExceeded) as error:
            self.problems[key] = error
            return None

    def each(self, numbers: Iterable[int], name: Callable[[int], str], parse: Callable[..., R]) -> dict[int, R]:
        ordered = sorted(numbers)
        records = in_parallel(lambda number: self.one(name(number), parse), ordered)
        return {number: record for number, record in zip(ordered, records, strict=True) if record is not None}
