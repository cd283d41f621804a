"""Decisions about notices: as a table, and for any situation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.agent.planner import SPACING_S, SPOT_NOTICE_S, Flight, Situation, decide, fits, overrun
from spotckpt.notices.notice import Action, Kind, Notice

_NOW = 1000.0
_MB = 10**6


def final(in_s: float | None, action: Action = "terminate", kind: Kind = "spot") -> Notice:
    return Notice(kind, action, None if in_s is None else _NOW + in_s, "n")


def situation(in_s: float | None = 120.0, **known: Any) -> Situation:
    """500 MB at 50 MB/s take 10 s; a boundary every second."""
    usual = {"snapshot_bytes": 500 * _MB, "bandwidth": 50e6, "boundary_s": 0.5, "step_s": 1.0}
    return Situation(**{"notice": final(in_s), "now": _NOW, **usual, **known})


@pytest.mark.fault(75)
@pytest.mark.parametrize(
    ("known", "plan", "sending", "words"),
    [
        # first of all one snapshot; with what is sealed already in its place only if no boundary is in sight
        (situation(), "snapshot", "go", "500.0 MB at 50.0 MB/s take 10.0 s"),
        (situation(sealed_bytes=500 * _MB), "snapshot", "hold", "waits for the boundary in 0.5 s"),
        (situation(sealed_bytes=500 * _MB, boundary_s=None), "snapshot", "go", "next boundary none in sight"),
        (situation(sealed_bytes=500 * _MB, boundary_s=12.0), "snapshot", "go", "next boundary in 12.0 s"),
        (situation(10.4, sealed_bytes=500 * _MB), "last", "go", "no time for another"),
        (situation(bandwidth=None), "snapshot", "go", "a bandwidth that is not known"),
        # time for one only
        (situation(12.0), "last", "go", "no time for another"),
        (situation(3.0), "last", "go", "spot terminate in 3 s"),
        (situation(12.0, asked_s=1.0, is_awaited=True), "last", "go", "is the last one"),
        (situation(11.0, asked_s=1.0, flight=Flight(400 * _MB, True)), "stop", "go", "no time for another"),
        (situation(asked_s=1.0, flight=Flight(400 * _MB, True)), "continue", "go", "on its way"),
        # one is committed: the last one as late as is safe, others meanwhile
        (situation(asked_s=11.0, has_saved=True), "snapshot", "go", "can wait 100 s"),
        (situation(asked_s=9.0, has_saved=True), "continue", "go", "can wait 100 s"),
        (situation(27.0, asked_s=60.0, has_saved=True), "continue", "go", "can wait 7 s"),
        (situation(21.4, asked_s=60.0, has_saved=True), "last", "go", "the next boundary is the last one"),
        (situation(12.0, asked_s=60.0, has_saved=True), "last", "go", "the next boundary is the last one"),
        (situation(6.0, asked_s=60.0, has_saved=True), "stop", "go", "no time"),
        (situation(63.0, asked_s=60.0, has_saved=True, bandwidth=10e6), "last", "go", "take 50.0 s"),
        (situation(66.0, asked_s=60.0, has_saved=True, boundary_s=None), "snapshot", "go", "none in sight"),
        # past, and malformed, or hibernation, which gives no time: never 120 s for granted
        (situation(-10.0), "stop", "go", "no time is left"),
        (situation(None), "snapshot", "go", "at an unknown time"),
        (situation(None, asked_s=SPACING_S, has_saved=True), "snapshot", "go", "any may be the last"),
        (situation(None, asked_s=1.0, has_saved=True, seen_s=90.0), "continue", "go", "at most 30 s"),
        (situation(None, seen_s=SPOT_NOTICE_S), "stop", "go", "no time is left"),
        (replace(situation(), notice=final(None, "hibernate")), "snapshot", "go", "spot hibernate at an unknown"),
        # whoever waits for us is not kept waiting
        (replace(situation(), notice=final(None, kind="lifecycle")), "last", "go", "waits"),
        (replace(situation(), notice=final(None, kind="manual")), "last", "go", "waits"),
        (replace(situation(), notice=final(25.0, kind="signal")), "last", "go", "waits"),
    ],
)
def test_final_notices(known: Situation, plan: str, sending: str, words: str) -> None:
    decision = decide(known)
    assert (decision.plan, decision.sending) == (plan, sending), decision.why
    assert words in decision.why
    assert "\n" not in decision.why


@pytest.mark.parametrize(
    ("known", "sending"),
    [
        # under way before the notice: never given up
        (situation(15.0, flight=Flight(300 * _MB, False)), "go"),
        # begun because no boundary was in sight: gives way to what fits
        (situation(15.0, flight=Flight(300 * _MB, True)), "abandon"),
        (situation(40.0, flight=Flight(300 * _MB, True)), "abandon"),
        (situation(9.0, flight=Flight(300 * _MB, True)), "go"),
        # one is committed: given up only if both do not fit
        (situation(15.0, flight=Flight(300 * _MB, True), has_saved=True), "abandon"),
        (situation(17.0, flight=Flight(300 * _MB, True), has_saved=True), "go"),
        (situation(9.0, flight=Flight(300 * _MB, True), has_saved=True), "go"),
    ],
)
def test_an_upload_is_given_up_only_where_that_is_safe(known: Situation, sending: str) -> None:
    assert decide(replace(known, asked_s=1.0, sealed_bytes=500 * _MB, sealed_is_fresh=True)).sending == sending


SECONDS = st.floats(0, 300)
SITUATIONS = st.builds(
    Situation,
    notice=st.builds(final, st.none() | st.floats(-60, 300), kind=st.sampled_from(["spot", "manual", "maintenance"])),
    now=st.just(_NOW),
    seen_s=SECONDS,
    reserve_s=st.floats(0, 60),
    snapshot_bytes=st.none() | st.integers(0, 10**12),
    bandwidth=st.none() | st.floats(1, 1e10),
    copy_s=st.floats(0, 20),
    commit_s=st.floats(0, 20),
    flight=st.none() | st.builds(Flight, st.integers(0, 10**12), st.booleans()),
    sealed_bytes=st.integers(0, 10**12),
    sealed_is_fresh=st.booleans(),
    boundary_s=st.none() | SECONDS,
    step_s=SECONDS,
    asked_s=st.none() | SECONDS,
    is_awaited=st.booleans(),
    has_saved=st.booleans(),
)


@given(SITUATIONS)
def test_what_holds_in_any_situation(known: Situation) -> None:
    decision = decide(known)
    left = known.notice.seconds_left(_NOW) if known.notice else None
    assert decision.why and "\n" not in decision.why
    if decision.sending == "hold":
        assert known.boundary_s is not None and known.sealed_bytes and not known.has_saved
        assert decision.plan in ("snapshot", "last", "continue"), "nothing is held back for what nobody takes"
    if decision.sending == "abandon":
        assert known.flight is not None and known.flight.is_ours and known.sealed_is_fresh
        assert left is None or known.upload_s(known.sealed_bytes) <= left, "given up for what does not fit"
    if known.asked_s is None and not known.has_saved and (left is None or left > 0) and known.seen_s < SPOT_NOTICE_S:
        assert decision.plan in ("snapshot", "last"), "the first snapshot is always tried"


@given(SITUATIONS, st.floats(0, 300))
def test_who_waits_with_the_last_snapshot_can_still_take_it(known: Situation, left: float) -> None:
    known = replace(known, notice=final(left), has_saved=True, flight=None, sealed_bytes=0, is_awaited=False)
    if decide(known).plan == "continue" and left > 0 and known.boundary_s is not None:
        following = known.boundary_s + known.step_s
        assert following + known.copy_s + known.upload_s() + known.reserve_s <= left


@given(SITUATIONS)
def test_a_faster_line_never_ends_a_training_earlier(known: Situation) -> None:
    rank = {"snapshot": 1, "continue": 1, "last": 2, "stop": 3}
    if known.bandwidth is not None and known.has_saved:
        faster = replace(known, bandwidth=2 * known.bandwidth)
        assert rank[decide(faster).plan] <= rank[decide(known).plan]


@pytest.mark.fault(76)
def test_a_rebalance_asks_for_one_snapshot_and_then_for_none() -> None:
    hint = Notice("rebalance", "rebalance", None, "hint")
    assert decide(Situation(notice=hint, now=_NOW)).plan == "snapshot"
    assert decide(Situation(notice=hint, now=_NOW, asked_s=0.0)).plan == "continue"


def test_without_a_notice_everything_goes_on() -> None:
    decision = decide(Situation(notice=None, now=_NOW))
    assert (decision.plan, decision.sending) == ("continue", "go")


def test_what_was_asked_for_goes_before_the_newest_only_with_time_to_spare() -> None:
    assert fits(100 * _MB, seconds_left=30, bandwidth=10e6, reserve_s=10)
    assert not fits(101 * _MB, seconds_left=30, bandwidth=10e6, reserve_s=10)


@pytest.mark.fault(48)
def test_uploads_that_outlast_any_notice_are_declared() -> None:
    assert overrun(100 * _MB, 1e6, reserve_s=10) == ""
    warning = overrun(200 * _MB, 1e6, reserve_s=10)
    assert "takes 200 s" in warning and "at 1.0 MB/s" in warning and "120 s" in warning
