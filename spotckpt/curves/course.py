"""The course of a run, as its records tell it: attempts, interruptions and their cost, points to go back to.

A pure function of the catalog, and of whether the run was over with snapshots of which no record tells it. A run has
one line that leads to its newest snapshot, and others that were left when somebody went back. All times are the
store's, where it told them: the clocks of the machines that trained may be off.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from spotckpt.snapshot.catalog import Catalog
from spotckpt.snapshot.choose import back_from, lineage
from spotckpt.snapshot.keys import SnapshotId, claim_key, heartbeat_key, manifest_key
from spotckpt.snapshot.records import Base, Heartbeat

Kind = Literal["notice", "killed", "error", "user"]

_NEWEST = "newest"
_SILENT_S = 60.0
"""Without a heartbeat for so long, by this machine's clock, an attempt is shown as lost."""


@dataclass(frozen=True)
class Stretch:
    """What one attempt added to a line. Times are seconds since the epoch, None where nothing tells.

    Attributes:
        attempt: its number.
        first: the step that it went on from, 0 from scratch.
        last: the step that the next one went on from, or how far it came.
        began: when it claimed the run.
        host: where it ran.
        clock: (step, time) of what is known, in order of steps.
    """

    attempt: int
    first: int
    last: int
    began: float | None
    host: str
    clock: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Interruption:
    """The end of an attempt that was not the end of the run.

    Attributes:
        attempt: which one ended.
        snapshot: what the training goes on from, or would go on from; None is from scratch.
        step: that snapshot's.
        reached: how far it had come, by its last heartbeat.
        seconds: of training, between the two.
        cause: for people: `spot notice (terminate)`.
        kind: what kind of cause.
        at: when, by its last heartbeat.
        resumed_by: the attempt that went on; None if nobody did yet.
    """

    attempt: int
    snapshot: str | None
    step: int
    reached: int
    seconds: float
    cause: str
    kind: Kind
    at: float | None
    resumed_by: int | None

    @property
    def replayed(self) -> int:
        """Steps that are trained again."""
        return max(0, self.reached - self.step)


@dataclass(frozen=True)
class ResumePoint:
    """A committed snapshot: the training can go on from here with `URI@selector`."""

    step: int
    snapshot: str
    selector: str
    at: float | None


@dataclass(frozen=True)
class Line:
    """One way from the start of the run to a snapshot.

    Attributes:
        tip: whose metric history is its curve.
        since: where it leaves the main line; 0 for the main line itself.
        left_by: what was asked for when it was left, as in `step=1200`; empty for the main line.
    """

    tip: SnapshotId
    since: int
    left_by: str
    stretches: tuple[Stretch, ...]
    interruptions: tuple[Interruption, ...]
    points: tuple[ResumePoint, ...]


def untold_ends(catalog: Catalog) -> list[SnapshotId]:
    """The last snapshots of attempts that never told why they were over: their manifests say if the run was, with them.

    An agent that dies between the last commit and the release, or cannot reach the store, leaves no word.
    """
    found = []
    for number in {one.attempt for one in catalog.snapshots}:
        beat, last = catalog.heartbeats.get(number), catalog.of_attempt(number)[0]
        if last in catalog.snapshots and (beat is None or not beat.released or beat.ended in ("gone", "")):
            found.append(last)
    return sorted(found)


def find_lines(
    catalog: Catalog, *, now: float, tip: SnapshotId | None = None, finished: Collection[SnapshotId] = ()
) -> list[Line]:
    """The line to a snapshot, and then those that were left, the newest first.

    Args:
        catalog: of the run.
        now: seconds since the epoch.
        tip: where the main line ends; None for the newest, and with it those that were left.
        finished: those of `untold_ends` with which the run was over.

    Returns:
        Nothing if there is no snapshot.
    """
    newest = [one for one in lineage(catalog, catalog.highest).ids if one in catalog.snapshots]
    selectors = _selectors(catalog, newest)
    ends = _interruptions(catalog, now, finished)
    if tip is not None:
        ids = [one for one in back_from(catalog, tip) if one in catalog.snapshots]
        return [_line(catalog, ids, _chain(catalog, tip.attempt), ends, selectors, still=tip.step)]
    if not newest:  # it was begun afresh, and nothing is committed yet: what was left is what there is
        tip = max(catalog.snapshots, default=None)
        return [] if tip is None else find_lines(catalog, now=now, tip=tip, finished=finished)
    last = max([newest[0].attempt, *(number for number, base in catalog.bases.items() if base.id in newest)])
    lines = [_line(catalog, newest, _chain(catalog, last), ends, selectors)]
    covered = set(newest)
    for number in range(catalog.highest, 0, -1):
        own = [one for one in catalog.of_attempt(number) if one in catalog.snapshots and one not in covered]
        if own:
            ids = [one for one in back_from(catalog, own[0]) if one in catalog.snapshots]
            lines.append(_left(catalog, ids, newest, ends, selectors))
            covered.update(ids)
    return lines


def _line(
    catalog: Catalog,
    ids: Sequence[SnapshotId],
    chain: Sequence[int],
    ends: Sequence[Interruption],
    selectors: dict[SnapshotId, str],
    *,
    still: int | None = None,
) -> Line:
    names = {str(one) for one in ids}
    stretches = tuple(_stretches(catalog, chain, still))
    return Line(
        tip=ids[0],
        since=0,
        left_by="",
        stretches=stretches,
        interruptions=tuple(
            end for end in ends if _belongs(catalog, end, chain, names) and (still is None or end.step <= still)
        ),
        points=tuple(_point(catalog, one, selectors) for one in reversed(ids)),
    )


def _belongs(catalog: Catalog, end: Interruption, chain: Sequence[int], names: set[str]) -> bool:
    """Also that of an attempt which committed nothing, and so is on no line: it cost time all the same."""
    if end.snapshot is None:
        return end.resumed_by in chain or end.resumed_by is None or not catalog.of_attempt(end.resumed_by)
    return end.resumed_by in chain or end.snapshot in names


def _left(
    catalog: Catalog,
    ids: Sequence[SnapshotId],
    main: Sequence[SnapshotId],
    ends: Sequence[Interruption],
    selectors: dict[SnapshotId, str],
) -> Line:
    whole = _line(catalog, ids, _chain(catalog, ids[0].attempt), ends, selectors, still=ids[0].step)
    fork = next((one for one in ids if one in main), None)
    since = 0 if fork is None else fork.step
    leaver = next(
        (base for _, base in sorted(catalog.bases.items()) if base.id == fork and base.attempt > ids[0].attempt), None
    )
    return Line(
        tip=whole.tip,
        since=since,
        left_by="" if leaver is None else leaver.selector,
        stretches=tuple(one for one in whole.stretches if one.last > since),
        interruptions=tuple(one for one in whole.interruptions if one.step > since),
        points=tuple(one for one in whole.points if one.step > since),
    )


def _chain(catalog: Catalog, attempt: int) -> list[int]:
    """The attempts that led to this one, oldest first, and it. Ends: a base is of an earlier attempt."""
    found = [attempt]
    while (base := catalog.bases.get(found[-1])) is not None and base.id is not None:
        found.append(base.id.attempt)
    return found[::-1]


def _stretches(catalog: Catalog, chain: Sequence[int], still: int | None) -> Iterator[Stretch]:
    for number, following in zip(chain, [*chain[1:], None], strict=True):
        first, claim = _begins_at(catalog, number), catalog.claims.get(number)
        clock = _clock(catalog, number)
        last = _begins_at(catalog, following) if following is not None else still
        if last is None:
            last = max([first, *(step for step, _ in clock)])
        elif following is None or not _went_on(catalog.bases[following]):  # what came after belongs to another line
            clock = tuple((step, at) for step, at in clock if step <= last)
        yield Stretch(
            attempt=number,
            first=first,
            last=last,
            began=_claimed_at(catalog, number),
            host=claim.holder.host if claim else "",
            clock=clock,
        )


def _begins_at(catalog: Catalog, attempt: int) -> int:
    base = catalog.bases.get(attempt)
    return base.id.step if base is not None and base.id is not None else 0


def _clock(catalog: Catalog, attempt: int) -> tuple[tuple[int, float], ...]:
    """When the attempt was at which step: from its claim, its manifests and its last heartbeat."""
    beat = catalog.heartbeats.get(attempt)
    known = [(_begins_at(catalog, attempt), _claimed_at(catalog, attempt))]
    known += [(one.step, _written(catalog, manifest_key(one))) for one in catalog.of_attempt(attempt)]
    if beat is not None and beat.reached is not None:
        known.append((beat.reached.step, _beat_at(catalog, attempt)))
    return tuple(sorted((step, at) for step, at in known if at is not None))


def _claimed_at(catalog: Catalog, attempt: int) -> float | None:
    """When it began; None if nothing tells."""
    claim = catalog.claims.get(attempt)
    return _written(catalog, claim_key(attempt), None if claim is None else claim.created)


def _beat_at(catalog: Catalog, attempt: int) -> float | None:
    """When it gave its last sign of life; None if it never did."""
    beat = catalog.heartbeats.get(attempt)
    return None if beat is None else _written(catalog, heartbeat_key(attempt), beat.time)


def _written(catalog: Catalog, key: str, told: float | None = None) -> float | None:
    """When a record was written; where the store does not say, what its writer told."""
    at = catalog.written.get(key, math.inf)
    return at if math.isfinite(at) else told


def _interruptions(catalog: Catalog, now: float, finished: Collection[SnapshotId]) -> list[Interruption]:
    """Of all attempts that had an effect, and did not end with the run."""
    numbers = sorted({*catalog.bases, *(one.attempt for one in catalog.snapshots)})
    found = []
    for number, following in pairwise([*numbers, None]):
        assert number is not None
        beat, beat_at, own = catalog.heartbeats.get(number), _beat_at(catalog, number), catalog.of_attempt(number)
        lives = following is None and beat_at is not None and now - beat_at < _SILENT_S
        cause = _cause(beat, lives)
        base = None if following is None else catalog.bases.get(following)
        if cause is None or not _went_on(base) or (own and own[0] in finished):
            continue
        snapshot = _newest_of(catalog, number) if base is None else base.id
        step = 0 if snapshot is None else snapshot.step
        reached = beat.reached if beat is not None else None
        lost = reached.lost(step) if reached is not None else None
        found.append(
            Interruption(
                attempt=number,
                snapshot=None if snapshot is None else str(snapshot),
                step=step,
                reached=max(step, reached.step) if reached is not None else step,
                seconds=lost.seconds if lost is not None else 0.0,
                cause=cause[1],
                kind=cause[0],
                at=beat_at,
                resumed_by=following,
            )
        )
    return found


def _went_on(base: Base | None) -> bool:
    """Whether the next attempt went on where the lineage ended, rather than going back."""
    return base is None or base.selector == _NEWEST


def _newest_of(catalog: Catalog, attempt: int) -> SnapshotId | None:
    own, base = catalog.of_attempt(attempt), catalog.bases.get(attempt)
    return own[0] if own else None if base is None else base.id


def _cause(beat: Heartbeat | None, lives: bool) -> tuple[Kind, str] | None:
    """What ended an attempt, by its last heartbeat; None if nothing did, or it was no training that broke off."""
    if beat is None or not beat.released:
        return None if lives else ("killed", "machine lost: no sign of life")
    match beat.ended:
        case "finished" | "forked" | "pushed":
            return None
        case "gone":
            return "killed", "killed: the process went without a word"
        case "Ctrl-C" | "taken over" | "closed" | "":
            return "user", beat.ended or "ended"
        case "SIGTERM":
            return "notice", "SIGTERM"
        case told:
            return ("notice" if " notice (" in told else "error"), told


def _selectors(catalog: Catalog, newest: Sequence[SnapshotId]) -> dict[SnapshotId, str]:
    """`step=N` for each snapshot that this means. One that was gone back to before would mean the newest."""
    consumed = lineage(catalog, catalog.highest).consumed
    by_step: dict[int, SnapshotId] = {}
    for one in newest:
        by_step.setdefault(one.step, one)
    return {one: f"step={step}" for step, one in by_step.items() if f"step={step}" not in consumed}


def _point(catalog: Catalog, one: SnapshotId, selectors: dict[SnapshotId, str]) -> ResumePoint:
    return ResumePoint(one.step, str(one), selectors.get(one, str(one)), _written(catalog, manifest_key(one)))
