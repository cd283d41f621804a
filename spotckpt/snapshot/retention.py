"""What of a run may be deleted, and why each thing is kept or not: pure functions of what was seen in the bucket.

What must stay, whatever the policy says: the newest of the lineage, what the highest attempt continues, what the next
snapshot of an attempt that may still commit could refer to, what is pinned, and the packs that all these name.

Ages are differences of the store's own times. No other clock is compared with them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spotckpt.config import Best, Every, Keep
from spotckpt.snapshot.catalog import Catalog
from spotckpt.snapshot.choose import back_from, lineage
from spotckpt.snapshot.keys import SnapshotId, claim_key, parse_key
from spotckpt.snapshot.manifest import Manifest
from spotckpt.store.base import Stat, Unfinished

SWEEP_AGE_S = 4 * 86400.0
"""Younger leftovers stay: their writer may be slow, or asleep."""
RESTART_AGE_S = SWEEP_AGE_S / 2
"""A commit whose upload began longer ago than this begins again, under a new id: a sweep may be near."""
SETTLING_S = 3600.0
"""How long after a claim what the attempt before it committed, and what the new one chooses from, is left alone.

An attempt commits nothing later than minutes after the claim of the next: it looks for that claim right before.
"""

_Why = dict[SnapshotId, list[str]]


@dataclass(frozen=True)
class Header:
    """What retention asks of a manifest.

    Attributes:
        packs: the keys of all packs and history segments that it names.
        written: when, by the store's clock.
        is_finite: no metric of the training is NaN or infinite.
        evaluated: metrics that were measured on these very weights.
    """

    snapshot: SnapshotId
    packs: tuple[str, ...] = ()
    written: float = 0.0
    is_finite: bool = True
    evaluated: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest, written: float) -> Header:
        """Of a manifest that was written then; by the writer's clock if the store does not tell."""
        return cls(
            manifest.snapshot,
            (*(pack.key for pack in manifest.packs), *(segment.key for segment in manifest.history)),
            written if math.isfinite(written) else manifest.committed,
            all(map(math.isfinite, manifest.latest.values())),
            manifest.evaluated,
        )


@dataclass(frozen=True)
class Seen:
    """A run, as it was read.

    Attributes:
        catalog: its records.
        headers: of every snapshot that is committed.
        pins: by name, what they hold.
        now: the time, by the store's clock.
    """

    catalog: Catalog
    headers: Mapping[SnapshotId, Header]
    pins: Mapping[str, SnapshotId] = field(default_factory=dict)
    now: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Every snapshot is in one of them, with why."""

    keep: Mapping[SnapshotId, str]
    drop: Mapping[SnapshotId, str]


def plan(seen: Seen, policy: Keep | None, *, abandoned: bool = False) -> Plan:
    """Which snapshots to keep and which to delete.

    Args:
        seen: the run.
        policy: None keeps all.
        abandoned: delete also what no restart would come to: branches that were left by going back. Otherwise the
            policy holds for each of them as for the lineage, so that going back deletes nothing by itself.

    Raises:
        Corrupt: a record that would tell what follows what cannot be read.
    """
    main, *others = _lines(seen)
    why: _Why = {}
    for one, reason in _required(seen, main):
        why.setdefault(one, []).append(reason)
    if policy is None or (starting := _is_starting(seen)):
        everything = "nothing says to delete it" if policy is None else f"attempt {starting} is choosing just now"
        return Plan({one: "; ".join(why.get(one, [everything])) for one in seen.headers}, {})
    left = set().union(*others) - set(main) if abandoned and main else set()
    for line in [main] if left else [main, *others]:
        for one, reason in _wanted(seen, line, policy):
            why.setdefault(one, []).append(reason)
    keep = {one: "; ".join(reasons) for one, reasons in why.items() if one in seen.headers}
    unwanted = f"none of {policy}"
    gone = [one for one in seen.headers if one not in keep]
    return Plan(keep, {one: "of a branch that no restart would come to" if one in left else unwanted for one in gone})


def needed(seen: Seen) -> set[SnapshotId]:
    """Snapshots that stay whatever the policy says; also such as are not there any more."""
    return {one for one, _ in _required(seen, next(_lines(seen)))}


def unnamed(seen: Seen, packs: Iterable[Stat]) -> list[Stat]:
    """The packs, parts and history segments that belong to no snapshot and that none refers to."""
    kept = needed(seen) | seen.headers.keys()
    named = {pack for header in seen.headers.values() for pack in header.packs}
    found = []
    for stat in packs:
        key = parse_key(stat.key)
        if (
            key is not None
            and key.kind in ("pack", "part", "history")
            and key.snapshot not in kept
            and stat.key not in named
        ):
            found.append(stat)
    return found


def loose(seen: Seen, objects: Iterable[Stat], pruned: Collection[SnapshotId]) -> dict[str, str]:
    """Of what is unnamed, what may be deleted: key → why.

    Args:
        seen: the run.
        objects: from `unnamed`.
        pruned: the snapshots that are recorded as pruned.
    """
    found = {}
    for stat in objects:
        key = parse_key(stat.key)
        assert key is not None
        if key.snapshot in pruned:
            found[stat.key] = "its snapshot is pruned, and no other refers to it"
        elif _is_over(seen.catalog, key.attempt) and seen.now - stat.modified > SWEEP_AGE_S:
            found[stat.key] = "of an upload that was never committed"
    return found


def forgotten(seen: Seen, objects: Iterable[Stat]) -> dict[str, str]:
    """Of what `spotckpt doctor` wrote, what it could not delete itself: key → why."""
    return {
        stat.key: "a doctor left it"
        for stat in objects
        if getattr(parse_key(stat.key), "kind", "") == "probe" and seen.now - stat.modified > SWEEP_AGE_S
    }


def stale(seen: Seen, writes: Iterable[Unfinished]) -> list[Unfinished]:
    """The unfinished writes whose writer is gone for good: of keys of ours, of attempts that are over, and old."""
    found = []
    for write in writes:
        key = parse_key(write.key)
        if key is None or not seen.now - write.began > SWEEP_AGE_S:
            continue
        if key.attempt == 0 or _is_over(seen.catalog, key.attempt):
            found.append(write)
    return found


def _lines(seen: Seen) -> Iterator[list[SnapshotId]]:
    """The lineage, then each branch that was left, with what it shares with others; all newest first."""
    catalog = seen.catalog
    line = lineage(
        catalog, catalog.highest, evaluated=lambda ids: {one: seen.headers[one].evaluated for one in _there(seen, ids)}
    ).ids
    if line.cut is not None:
        raise line.cut
    main = _there(seen, line)
    yield main
    rest = seen.headers.keys() - set(main)
    while rest:
        branch = _there(seen, back_from(catalog, max(rest)))
        rest -= set(branch)
        yield branch


def _there(seen: Seen, ids: Iterable[SnapshotId]) -> list[SnapshotId]:
    return [one for one in ids if one in seen.headers]


def _required(seen: Seen, main: Sequence[SnapshotId]) -> Iterator[tuple[SnapshotId, str]]:
    catalog = seen.catalog
    if main:
        yield main[0], "the newest"
    base = catalog.bases.get(catalog.highest)
    if base is not None and base.id is not None:
        yield base.id, f"attempt {catalog.highest} continues it"
    for attempt in _may_commit(seen):
        for one in _could_be_parents(seen, attempt):
            yield one, f"attempt {attempt} may still refer to it"
    for name, one in seen.pins.items():
        yield one, f"pinned as {name}"
    finite = next((one for one in main if seen.headers[one].is_finite), None)
    if finite is not None and finite != main[0]:
        yield finite, "the last without NaN"


def _could_be_parents(seen: Seen, attempt: int) -> Iterator[SnapshotId]:
    """What the attempt's next snapshot may continue: its newest acknowledged, or what that was when it last told.

    A manifest that landed without an answer is newer than that, and the attempt may not go on from it.
    """
    beat, base = seen.catalog.heartbeats.get(attempt), seen.catalog.bases.get(attempt)
    told = beat.last_id if beat is not None else None
    if told is None and base is not None and base.id is not None:
        yield base.id
    for one in seen.headers:
        if one.attempt == attempt and (told is None or one.sequence >= told.sequence):
            yield one


def _may_commit(seen: Seen) -> Iterator[int]:
    """The highest attempt, and those before it that may not have noticed yet that they are superseded."""
    for attempt in range(seen.catalog.highest, 0, -1):
        if attempt < seen.catalog.highest and not _claimed_lately(seen, attempt + 1):
            return
        beat = seen.catalog.heartbeats.get(attempt)
        if beat is None or not beat.released:
            yield attempt


def _claimed_lately(seen: Seen, attempt: int) -> bool:
    return seen.now - seen.catalog.written.get(claim_key(attempt), math.inf) < SETTLING_S


def _is_starting(seen: Seen) -> int:
    """The attempt that may be choosing what it continues, 0 if none is."""
    catalog = seen.catalog
    beat = catalog.heartbeats.get(catalog.highest)
    begun = catalog.highest in catalog.bases or (beat is not None and beat.released)
    return 0 if begun or not _claimed_lately(seen, catalog.highest) else catalog.highest


def _is_over(catalog: Catalog, attempt: int) -> bool:
    """Whether the attempt commits nothing any more that anybody would be told of."""
    if attempt != catalog.highest:
        return attempt < catalog.highest
    beat = catalog.heartbeats.get(attempt)
    return beat is not None and beat.released


def _wanted(seen: Seen, line: Sequence[SnapshotId], policy: Keep) -> Iterator[tuple[SnapshotId, str]]:
    for one in line[: policy.last]:
        yield one, f"of the last {policy.last}"
    for every in policy.every:
        yield from ((one, f"the first of its {every}") for one in _first_of_each(seen, line, every))
    for best in policy.best:
        yield from ((one, f"of the best {best.count} by {best.metric}") for one in _best(seen, line, best))


def _first_of_each(seen: Seen, line: Sequence[SnapshotId], every: Every) -> Iterator[SnapshotId]:
    """The oldest of each stretch: once it is that it stays that, whatever comes and goes."""
    stretches = set()
    for one in reversed(line):
        stretch = one.step // every.steps if every.steps else seen.headers[one].written // every.seconds
        if stretch not in stretches:
            stretches.add(stretch)
            yield one


def _best(seen: Seen, line: Sequence[SnapshotId], best: Best) -> list[SnapshotId]:
    values = {one: seen.headers[one].evaluated.get(best.metric.path, math.nan) for one in line}
    sign = -1 if best.metric.mode == "max" else 1
    numbers = [one for one in line if not math.isnan(values[one])]
    return sorted(numbers, key=lambda one: sign * values[one])[: best.count]  # of equals the newest, as in choosing
