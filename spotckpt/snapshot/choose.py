"""Which snapshot an attempt continues: a pure function of the catalog and the selector.

What the catalog has not read yet it reads when a choice depends on it.

The order of snapshots is the lineage: those of an attempt, newest first, then the one that the attempt continued and
that one's ancestors, as the base records say. Never time, step or the order of a listing. A snapshot that a superseded
attempt commits late is later than what its successor continued, so it is in no lineage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile

from spotckpt.address import NEWEST, Metric, Selector
from spotckpt.errors import AddressError, Corrupt, NoSuchSnapshot, NothingRestorable, Pruned, SnapshotError
from spotckpt.snapshot.catalog import Catalog
from spotckpt.snapshot.keys import SnapshotId, base_key, claim_key, manifest_key, parse_key
from spotckpt.snapshot.lazy import Found, Line

Evaluated = Callable[[Sequence[SnapshotId]], "Mapping[SnapshotId, Mapping[str, float]]"]
"""The `evaluated` metrics of these snapshots; one whose manifest cannot be read is left out."""

MOST_SKIPPED = 200
_BY_ID = "name a snapshot by its full id (@a....-n....), or start afresh with @start"


@dataclass(frozen=True)
class Lineage:
    """What an attempt's successor may continue.

    Attributes:
        ids: newest first, and why they end if not at a start from scratch.
        consumed: selectors that led here.
    """

    ids: Line = field(default_factory=lambda: Line(()))
    consumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What to restore.

    Attributes:
        candidates: to be tried in this order; a later one only if the earlier ones are corrupt or missing. They may
            be read from the catalog as somebody looks at them.
        fresh: start from scratch; there are no candidates then.
        consumed: for the base record.
        why: one line for the user.
        followed: the selector was gone back to before, so it means the newest now.
    """

    candidates: Sequence[SnapshotId]
    fresh: bool
    consumed: tuple[str, ...]
    why: str
    followed: bool = False

    def skipped(self, chosen: SnapshotId | None) -> tuple[str, ...]:
        """The candidates before the chosen one, for the base record; of many the first, as a record is bounded."""
        before = takewhile(lambda one: one != chosen, self.candidates)
        return tuple(str(one) for one in islice(before, MOST_SKIPPED))


def lineage(catalog: Catalog, attempt: int, *, evaluated: Evaluated | None = None) -> Lineage:
    """What a successor of that attempt continues if it is told nothing.

    An attempt that recorded no base and committed nothing hands on what its own selector meant.

    Raises:
        Corrupt: the record that would tell is unreadable.
    """
    last = _last_with_effect(catalog, attempt)
    recorded = found = _recorded(catalog, last)
    for number in range(last + 1, attempt + 1):
        found = _handed_on(catalog, recorded, number, evaluated) or found
    return found


def choose(
    catalog: Catalog,
    before: int,
    selector: Selector = NEWEST,
    *,
    evaluated: Evaluated | None = None,
    claiming: bool = True,
) -> Choice:
    """What attempt `before` continues.

    Args:
        catalog: read after `before` was claimed.
        before: the chooser's own attempt: only snapshots of earlier ones count.
        selector: what the user asked for. One that this lineage has followed already means the newest.
        evaluated: needed for `best`.
        claiming: False for a reader that only looks (with `before` the highest attempt plus one): a selector then
            means what it says, however often it was followed.

    Raises:
        NoSuchSnapshot: the selector matches nothing.
        Pruned: it matches what was pruned.
        NothingRestorable: there are snapshots that no claim accounts for, so a fresh start would mix two runs.
        Corrupt: the record that would tell is unreadable.
    """
    if claiming or selector.kind != "id":
        _require_accounted(catalog, before)
    if selector.kind == "newest":
        return _continue(catalog, lineage(catalog, before - 1, evaluated=evaluated), "")
    recorded = _recorded(catalog, _last_with_effect(catalog, before - 1))
    if claiming and str(selector) in recorded.consumed:
        found = _continue(catalog, recorded, f"@{selector} was followed already; going on with the newest after it")
        return replace(found, followed=True)
    if selector.kind == "start":
        return Choice((), True, ("start",), "starting afresh, as asked for by @start")
    candidates = _matching(catalog, recorded, selector, before, evaluated)
    if not candidates:
        raise _no_such(selector, recorded.ids, catalog)
    return Choice(candidates, False, (str(selector),), f"asked for by @{selector}")


def _continue(catalog: Catalog, line: Lineage, why: str) -> Choice:
    if not line.ids and line.ids.cut is not None:
        raise line.ids.cut
    if not line.ids:
        _require_readable_heartbeats(catalog)
    fallback = "the newest" if line.ids else "nothing was committed before: starting from scratch"
    return Choice(line.ids, not line.ids, line.consumed, why or fallback)


def _require_readable_heartbeats(catalog: Catalog) -> None:
    """A start from scratch needs to know that nothing was ever acknowledged, and the heartbeats are what tells."""
    for key, problem in catalog.problems.items():
        parsed = parse_key(key)
        if parsed is not None and parsed.kind == "heartbeat":
            raise problem


def _last_with_effect(catalog: Catalog, attempt: int) -> int:
    """The highest attempt so far that recorded a base, or left a trace that it did; 0 if none."""
    for number in range(attempt, 0, -1):
        based = number in catalog.bases and not _is_void(catalog, number)
        if based or base_key(number) in catalog.problems or catalog.of_attempt(number):
            return number
    return 0


def _is_void(catalog: Catalog, attempt: int) -> bool:
    """Whether its base was pruned before it was recorded, so that the attempt ended there.

    Only if it committed nothing: otherwise its own snapshots are what counts.
    """
    base = catalog.bases.get(attempt)
    return base is not None and base.id is not None and base.id not in catalog.snapshots and base.id in catalog.pruned


def _recorded(catalog: Catalog, attempt: int) -> Lineage:
    if attempt == 0:
        return Lineage()
    base = catalog.bases.get(attempt)
    ids = Line(_of_attempt_and_before(catalog, attempt, catalog.of_attempt(attempt)))
    return Lineage(ids, () if base is None else base.consumed)


def back_from(catalog: Catalog, snapshot: SnapshotId) -> Line:
    """The snapshot, whether it is there or not, and its ancestors."""
    return Line(_of_attempt_and_before(catalog, snapshot.attempt, _with_elders(catalog, snapshot)))


def _with_elders(catalog: Catalog, snapshot: SnapshotId) -> list[SnapshotId]:
    return [snapshot, *(one for one in catalog.of_attempt(snapshot.attempt) if one.sequence < snapshot.sequence)]


def _of_attempt_and_before(catalog: Catalog, attempt: int, ids: list[SnapshotId]) -> Found:
    """These of an attempt, then what follows its base. Ends: a base is of an earlier attempt."""
    while True:
        yield from ids
        base = catalog.bases.get(attempt)
        if base is None:
            return _no_base(catalog, attempt)
        if base.id is None:
            return None
        attempt, ids = base.id.attempt, _with_elders(catalog, base.id)


def _no_base(catalog: Catalog, attempt: int) -> SnapshotError:
    key = base_key(attempt)
    return catalog.problems.get(key) or Corrupt(f"{key} is missing, though the attempt committed", hint=_BY_ID)


def _handed_on(catalog: Catalog, recorded: Lineage, attempt: int, evaluated: Evaluated | None) -> Lineage | None:
    """What an attempt that came and went without effect would have continued; None if it changed nothing."""
    selector = _selector_of(catalog, attempt)
    if selector.kind == "newest":
        return None
    if str(selector) in recorded.consumed:
        return recorded
    if selector.kind == "start":
        return Lineage(consumed=(str(selector),))
    candidates = _matching(catalog, recorded, selector, attempt, evaluated)
    if not candidates:  # it ended with an error
        return None
    return Lineage(back_from(catalog, candidates[0]), (str(selector),))


def _selector_of(catalog: Catalog, attempt: int) -> Selector:
    key = claim_key(attempt)
    claim = catalog.claims.get(attempt)
    if claim is None:
        raise catalog.problems.get(key) or Corrupt(f"{key} is missing", hint=_BY_ID)
    try:
        return Selector.parse(claim.selector)
    except AddressError as error:
        raise Corrupt(f"{key}: {error.message}", hint=_BY_ID) from error


def _matching(
    catalog: Catalog, line: Lineage, selector: Selector, before: int, evaluated: Evaluated | None
) -> Sequence[SnapshotId]:
    match selector.kind:
        case "step":
            return Line(one for one in line.ids if one.step == selector.step)
        case "step_at_most":
            return Line(one for one in line.ids if one.step <= selector.step)
        case "best":
            assert selector.metric is not None
            return _best_first(line.ids, selector.metric, evaluated)
        case _:
            found = SnapshotId.parse(selector.snapshot)
            # one of an attempt that is not before ours cannot be our base
            later = before <= found.attempt <= catalog.highest
            # of one that was pruned, whoever reads it tells more
            known = found in catalog.snapshots or found in catalog.pruned
            return (found,) if known and not later else ()


def _best_first(ids: Sequence[SnapshotId], metric: Metric, evaluated: Evaluated | None) -> tuple[SnapshotId, ...]:
    assert evaluated is not None, "best needs the manifests"
    values = {one: metrics.get(metric.path, math.nan) for one, metrics in evaluated(ids).items()}
    sign = -1 if metric.mode == "max" else 1
    numbers = (one for one in ids if not math.isnan(values.get(one, math.nan)))
    return tuple(sorted(numbers, key=lambda one: sign * values[one]))  # stable: of equals the newest first


def _no_such(selector: Selector, ids: Sequence[SnapshotId], catalog: Catalog) -> SnapshotError:
    if selector.kind == "id":
        known = ", ".join(str(one) for one in sorted(catalog.snapshots, reverse=True)[:3])
        hint = f"the newest are {known}" if known else "the run has no snapshots yet"
        return NoSuchSnapshot(f"there is no snapshot {selector.snapshot}", hint=hint)
    if not ids:
        return NoSuchSnapshot(f"@{selector} matches nothing", hint="this lineage has no snapshots yet: leave it out")
    if selector.kind == "best" and selector.metric is not None:
        hint = f"keep_best={str(selector.metric)!r} snapshots the weights that were evaluated"
        return NoSuchSnapshot(f"no snapshot of weights with {selector.metric.path} measured on them", hint=hint)
    gone = [one for one in catalog.pruned if selector.kind == "step" and one.step == selector.step]
    if gone:
        hint = f"@step<={selector.step} means the newest up to there that was kept"
        return Pruned(f"@{selector} matches nothing any more: {max(gone)} was pruned", hint=hint)
    steps = sorted({one.step for one in ids})
    some = ", ".join(str(step) for step in steps) if len(steps) <= 12 else f"{steps[0]} … {steps[-1]} ({len(steps)})"
    return NoSuchSnapshot(f"@{selector} matches nothing", hint=f"this lineage has the steps {some}")


def _require_accounted(catalog: Catalog, before: int) -> None:
    strays = [one for one in catalog.snapshots if one.attempt == before or one.attempt > catalog.highest]
    if strays:
        raise NothingRestorable(
            f"{manifest_key(min(strays))} is there before attempt {before} has begun: the claims were deleted",
            hint="put attempts/ back, or use another run address",
        )
