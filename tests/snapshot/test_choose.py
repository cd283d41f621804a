"""The choosing rules, as tables. `sid(a, n)` is snapshot n of attempt a, at step 10·n unless said."""

from __future__ import annotations

import math

import pytest

from spotckpt.address import Selector
from spotckpt.errors import Corrupt, NoSuchSnapshot, NothingRestorable, Pruned
from spotckpt.snapshot.choose import MOST_SKIPPED, Choice, choose, lineage
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.records import Base
from tests.snapshot.bucket import catalog, raises_naming, sid

A = [sid(1, n) for n in range(1, 5)]  # attempt 1: steps 10, 20, 30, 40
B = [sid(2, n, 30 + 10 * n) for n in range(1, 4)]  # attempt 2 continues a1-n3: steps 40, 50, 60


def newest(*args, before: int, selector: str = "newest", **kwargs):
    return choose(catalog(*args, **kwargs), before, Selector.parse(selector))


def test_a_new_run_is_fresh() -> None:
    choice = newest([], {}, before=1)
    assert choice.fresh and choice.candidates == () and choice.consumed == ()


def test_newest_first_then_the_base_and_its_ancestors() -> None:
    choice = newest([*A, *B], {1: None, 2: A[2]}, before=3)
    assert not choice.fresh
    assert choice.candidates == (B[2], B[1], B[0], A[2], A[1], A[0])


def test_killed_before_the_first_commit_is_a_fresh_start_said_aloud() -> None:
    choice = newest([], {1: None}, before=2)
    assert choice.fresh and "from scratch" in choice.why


def test_an_attempt_without_a_base_changes_nothing() -> None:
    for selectors in ({2: "newest"}, {2: "newest", 3: "newest"}):
        choice = newest(A, {1: None}, selectors, before=max(selectors) + 1)
        assert choice.candidates == tuple(reversed(A))


def test_many_crashes_before_the_base_are_no_recursion() -> None:
    choice = newest(A, {1: None}, {5000: "newest"}, before=5001)
    assert choice.candidates[0] == A[-1]


def test_a_long_chain_of_attempts() -> None:
    ids = [sid(n, 0, n) for n in range(1, 3001)]
    bases = {1: None, **{n: ids[n - 2] for n in range(2, 3001)}}
    assert newest(ids, bases, before=3001).candidates == tuple(reversed(ids))


def test_order_is_never_step_or_nonce() -> None:
    ids = [SnapshotId(1, 1, 900, "ffffffff"), SnapshotId(1, 2, 5, "00000000")]
    assert newest(ids, {1: None}, before=2).candidates == (ids[1], ids[0])


# rewinds


def test_a_rewind_takes_exactly_that_step() -> None:
    choice = newest(A, {1: None}, before=2, selector="step=20")
    assert choice.candidates == (A[1],) and choice.consumed == ("step=20",)


def test_at_most_takes_the_newest_not_above() -> None:
    choice = newest([*A, *B], {1: None, 2: A[2]}, before=3, selector="step<=45")
    assert choice.candidates == (B[0], A[2], A[1], A[0])


def test_a_rewind_stays_in_force_after_it_was_recorded() -> None:
    bases = {1: None, 2: (A[1], ("step=20",))}
    for selector in ("newest", "step=20"):  # a supervisor repeats the same command
        choice = newest(A, bases, {2: "step=20"}, before=3, selector=selector)
        assert choice.candidates == (A[1], A[0])
        assert choice.consumed == ("step=20",)


def test_a_consumed_selector_means_the_newest_after_it() -> None:
    mine = [sid(2, n, 20 + 10 * n) for n in range(1, 3)]
    choice = newest([*A, *mine], {1: None, 2: (A[1], ("step=20",))}, before=3, selector="step=20")
    assert choice.candidates == (mine[1], mine[0], A[1], A[0])
    assert "followed already" in choice.why


def test_a_reader_means_what_it_says() -> None:
    mine = sid(2, 1, 30)
    found = catalog([*A, mine], {1: None, 2: (A[1], ("step=20",))})
    assert choose(found, 3, Selector.parse("step=20"), claiming=False).candidates == (A[1],)
    assert choose(found, 3, claiming=False).candidates == (mine, A[1], A[0])
    copied = catalog(A, {}, {})  # snapshots alone, without attempts/
    assert choose(copied, 1, Selector.parse(str(A[1])), claiming=False).candidates == (A[1],)
    with raises_naming(NothingRestorable, "claims were deleted"):
        choose(copied, 1, claiming=False)


def test_a_rewind_then_crash_before_the_base_was_recorded() -> None:
    selectors = {2: "step=20"}
    told_nothing = newest(A, {1: None}, selectors, before=3)
    assert told_nothing.candidates == (A[1], A[0])
    assert told_nothing.consumed == ("step=20",)
    again = newest(A, {1: None}, selectors, before=3, selector="step=20")
    assert again.candidates == (A[1],)
    other = newest(A, {1: None}, selectors, before=3, selector="step=40")
    assert other.candidates == (A[3],), "a rewind that took no effect must not hide what the user asks for now"


def test_a_rewind_then_crash_before_the_first_commit() -> None:
    bases = {1: None, 2: (A[1], ("step=20",)), 3: (A[1], ("step=20",))}
    assert newest(A, bases, before=4, selector="step=20").candidates == (A[1], A[0])
    assert newest(A, bases, before=4).candidates == (A[1], A[0])


def test_a_consumed_selector_survives_attempts_that_died_early() -> None:
    bases = {1: None, 2: (A[1], ("step=20",))}
    mine = sid(2, 7, 90)
    choice = newest([*A, mine], bases, {3: "step=20", 4: "step=20"}, before=5, selector="step=20")
    assert choice.candidates[0] == mine
    told_nothing = newest([*A, mine], bases, {3: "step=20", 4: "newest"}, before=5)
    assert told_nothing.candidates[0] == mine and told_nothing.consumed == ("step=20",)


def test_another_selector_after_a_rewind_is_followed() -> None:
    bases = {1: None, 2: (A[2], ("step=30",))}
    choice = newest([*A, *B], bases, before=3, selector="step=20")
    assert choice.candidates == (A[1],) and choice.consumed == ("step=20",)


def test_a_selector_that_ended_its_attempt_with_an_error_is_forgotten() -> None:
    choice = newest(A, {1: None}, {2: "step=999"}, before=3)
    assert choice.candidates == tuple(reversed(A))


def test_consumed_is_handed_on_with_the_newest_only() -> None:
    bases = {1: None, 2: (A[1], ("step=20",)), 3: (A[1], ("step=20",))}
    assert newest(A, bases, before=4).consumed == ("step=20",)


# start


def test_start_is_fresh_and_then_consumed() -> None:
    choice = newest(A, {1: None}, before=2, selector="start")
    assert choice.fresh and choice.consumed == ("start",)
    mine = sid(2, 1, 10)
    bases = {1: None, 2: (None, ("start",))}
    after = newest([*A, mine], bases, before=3, selector="start")
    assert after.candidates == (mine,) and after.consumed == ("start",)
    nothing_yet = newest(A, bases, before=3, selector="start")
    assert nothing_yet.fresh and nothing_yet.candidates == ()
    assert newest(A, bases, before=3).fresh, "the old branch is not read after a start from scratch"


def test_a_start_that_died_before_its_base() -> None:
    assert newest(A, {1: None}, {2: "start"}, before=3).fresh
    assert newest(A, {1: None}, {2: "start"}, before=3, selector="step=20").candidates == (A[1],)


# ids and other branches


def test_an_id_of_another_branch() -> None:
    ids = [*A, *B]
    bases = {1: None, 2: A[2]}
    other_branch = A[3]  # newer than what attempt 2 continued, so in no lineage
    assert other_branch not in newest(ids, bases, before=3).candidates
    choice = newest(ids, bases, before=3, selector=str(other_branch))
    assert choice.candidates == (other_branch,) and choice.consumed == (str(other_branch),)
    after = newest([*ids, sid(3, 1, 50)], {**bases, 3: (other_branch, (str(other_branch),))}, before=4)
    assert after.candidates == (sid(3, 1, 50), A[3], A[2], A[1], A[0])


def test_an_id_of_a_later_attempt_or_none_matches_nothing() -> None:
    for missing in (sid(1, 9), sid(7, 1)):
        with raises_naming(NoSuchSnapshot, str(missing)):
            newest(A, {1: None}, before=2, selector=str(missing))


@pytest.mark.fault(61)
def test_a_late_commit_of_a_superseded_attempt_is_in_no_lineage() -> None:
    zombie = sid(1, 9, 9000)
    bases = {1: None, 2: A[2]}
    for before, ids in ((3, [*A, zombie]), (3, [*A, zombie, *B])):
        found = newest(ids, bases, before=before)
        assert zombie not in found.candidates and A[3] not in found.candidates
    fresh = newest([zombie], {1: None, 2: None}, before=3)
    assert fresh.fresh, "attempt 2 began from scratch before attempt 1 committed"
    with pytest.raises(NoSuchSnapshot):
        newest([*A, zombie], bases, before=3, selector="step=9000")


# best


def best(metrics: dict[SnapshotId, dict[str, float] | None], selector: str, *args, before: int, **kwargs):
    return choose(
        catalog(*args, **kwargs),
        before,
        Selector.parse(selector),
        evaluated=lambda ids: {one: metrics.get(one) or {} for one in ids},
    )


def test_best_takes_only_evaluated_weights_of_the_lineage() -> None:
    zombie = sid(1, 9)
    metrics = {
        A[0]: {"valid/top1": 0.7},
        A[1]: {"valid/top1": 0.9},
        A[2]: {"valid/top1": math.nan},
        A[3]: {"valid/top1": 0.9, "valid/loss": 0.1},
        zombie: {"valid/top1": 1.0},
    }
    choice = best(metrics, "best=valid/top1:max", [*A, zombie], {1: None, 2: A[3]}, before=3)
    assert choice.candidates == (A[3], A[1], A[0])
    assert best(metrics, "best=valid/top1:min", A, {1: None}, before=2).candidates == (A[0], A[3], A[1])
    with raises_naming(NoSuchSnapshot, "valid/other"):
        best(metrics, "best=valid/other:max", A, {1: None}, before=2)
    after_crash = best(metrics, "newest", A, {1: None}, {2: "best=valid/top1:min"}, before=3)
    assert after_crash.candidates == (A[0],)


def test_a_manifest_that_cannot_be_read_is_not_best() -> None:
    metrics = {A[0]: {"valid/top1": 0.7}, A[1]: None}
    assert best(metrics, "best=valid/top1:max", A[:2], {1: None}, before=2).candidates == (A[0],)


# what is missing or damaged


def test_no_match_lists_what_there_is() -> None:
    with raises_naming(NoSuchSnapshot, "step=25", "10, 20, 30, 40"):
        newest(A, {1: None}, before=2, selector="step=25")
    with raises_naming(NoSuchSnapshot, "step=25", "no snapshots yet"):
        newest([], {1: None}, before=2, selector="step=25")


@pytest.mark.fault(66)
def test_a_missing_base_stays_a_candidate_and_does_not_cut_the_chain() -> None:
    ids = [A[0], A[1], *B]  # A[2], which attempt 2 continued, is gone
    assert newest(ids, {1: None, 2: A[2]}, before=3).candidates == (B[2], B[1], B[0], A[2], A[1], A[0])


@pytest.mark.fault(46)
def test_what_a_heartbeat_calls_committed_is_a_candidate_even_if_it_is_missing() -> None:
    choice = newest([], {1: None}, before=2, missing=frozenset([A[1]]))
    assert not choice.fresh and choice.candidates == (A[1],)
    choice = newest([A[0]], {1: None}, before=2, missing=frozenset([A[1]]))
    assert choice.candidates == (A[1], A[0])


@pytest.mark.fault(46)
def test_a_heartbeat_that_cannot_be_read_permits_no_fresh_start() -> None:
    broken = Corrupt("attempts/0001.heartbeat.json does not match its digest")
    with raises_naming(Corrupt, "0001.heartbeat.json"):
        newest([], {1: None}, before=2, problems={"attempts/0001.heartbeat.json": broken})
    assert newest([A[0]], {1: None}, before=2, problems={"attempts/0001.heartbeat.json": broken}).candidates == (A[0],)


@pytest.mark.fault(66)
def test_a_lost_base_record_is_never_a_fresh_start() -> None:
    assert lineage(catalog(A, {}, {1: "newest"}), 1).ids.cut is not None
    choice = newest(A, {}, {1: "newest"}, before=2)
    assert choice.candidates == tuple(reversed(A)) and not choice.fresh
    broken = Corrupt("attempts/0002.base.json does not match its digest")
    with raises_naming(Corrupt, "0002.base.json"):
        newest(A, {1: None}, {2: "newest"}, before=3, problems={"attempts/0002.base.json": broken})


def test_a_lost_claim_matters_only_if_its_selector_does() -> None:
    found = catalog(A, {1: None, 3: A[3]}, {})
    found.claims.pop(2)  # type: ignore[attr-defined]
    assert choose(found, 4).candidates == tuple(reversed(A))
    found = catalog(A, {1: None}, {2: "newest"})
    found.claims.pop(2)  # type: ignore[attr-defined]
    with raises_naming(Corrupt, "attempts/0002.json"):
        choose(found, 3)
    assert choose(found, 3, Selector.parse(str(A[1]))).candidates == (A[1],)


def test_snapshots_that_no_claim_accounts_for_are_never_overwritten_by_a_fresh_start() -> None:
    mine = catalog([*A, sid(2, 1)], {1: None, 2: A[3]}, {3: "newest"})
    assert choose(mine, 3).candidates[0] == sid(2, 1)
    with raises_naming(NothingRestorable, str(sid(2, 1))):
        choose(mine, 2)
    for ids in ([sid(1, 3)], [sid(4, 1)]):
        with raises_naming(NothingRestorable, str(ids[0]), "claims were deleted"):
            newest(ids, {}, before=1)


def test_later_attempts_are_not_looked_at() -> None:
    bases = {1: None, 2: A[2], 4: A[0]}
    assert newest([*A, *B, sid(4, 1)], bases, before=3).candidates[0] == B[2]


def test_skipped_are_the_candidates_before() -> None:
    choice = newest(A, {1: None}, before=2)
    assert choice.skipped(A[1]) == (str(A[3]), str(A[2]))
    assert choice.skipped(A[3]) == ()


def test_where_thousands_are_skipped_the_base_can_be_recorded() -> None:
    ids = tuple(sid(1, number) for number in range(5000, 0, -1))
    skipped = Choice(ids, False, (), "").skipped(ids[-1])
    assert skipped[0] == str(ids[0]) and len(skipped) == MOST_SKIPPED
    Base(2, str(ids[-1]), skipped=skipped).to_bytes()


# pruned ones


def test_what_was_pruned_is_told_as_such_and_not_as_unknown() -> None:
    gone = frozenset(A[:2])
    for selector in ("step=20", "step=10"):
        with raises_naming(Pruned, "was pruned", f"{selector}"):
            newest(A[2:], {1: None}, before=2, selector=selector, pruned=gone)
    with raises_naming(NoSuchSnapshot, "the steps 30, 40"):
        newest(A[2:], {1: None}, before=2, selector="step=25", pruned=gone)
    # whoever reads it says when and why
    assert newest(A[2:], {1: None}, before=2, selector=str(A[0]), pruned=gone).candidates == (A[0],)


def test_a_lineage_goes_on_beyond_what_was_pruned() -> None:
    choice = newest([A[0], B[2]], {1: None, 2: A[2]}, before=3, pruned=frozenset({A[1], A[2], B[0], B[1]}))
    assert choice.candidates == (B[2], A[2], A[0])


def test_an_attempt_whose_base_was_pruned_before_it_was_recorded_changes_nothing() -> None:
    choice = newest([A[3]], {1: None, 2: A[1]}, {2: "step=20"}, before=3, pruned=frozenset(A[:3]))
    assert choice.candidates == (A[3],)
    again = newest([A[3]], {1: None, 2: (A[1], ("step=20",))}, {2: "step=20"}, before=3, pruned=frozenset(A[:3]))
    assert again.candidates == (A[3],) and again.consumed == ()
    # but one that is missing without having been pruned is not passed over
    assert newest([A[3]], {1: None, 2: A[1]}, {2: "step=20"}, before=3).candidates == (A[1],)
    # and one that committed has its own lineage
    assert newest([A[3], B[0]], {1: None, 2: A[1]}, before=3, pruned=frozenset(A[:3])).candidates == (B[0], A[1])
