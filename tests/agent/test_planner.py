"""Decisions about notices, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from spotckpt.agent.planner import RESERVE_S, Situation, decide, overrun
from spotckpt.notices.notice import Action, Notice

_NOW = 1000.0
_MB = 10**6


def _final(in_s: float | None, action: Action = "terminate") -> Notice:
    return Notice("spot", action, None if in_s is None else _NOW + in_s, "n")


@pytest.mark.fault(75)
@pytest.mark.parametrize(
    ("known", "upload_now", "plan", "numbers"),
    [
        # 120 s: room for what is sealed and for one more
        ((_final(120), _NOW, 400 * _MB, 500 * _MB, 10e6), True, "snapshot", "90.0 s of 115.0 s"),
        ((_final(120), _NOW, 0, 500 * _MB, 10e6), False, "snapshot", "50.0 s of 115.0 s"),
        # exactly the time that is left beyond the reserve, and a byte more
        ((_final(120), _NOW, 0, 1150 * _MB, 10e6), False, "snapshot", "115.0 s of 115.0 s"),
        ((_final(120), _NOW, 1, 1150 * _MB, 10e6), True, "stop", "of 115.0 s"),
        # 30 s: the sealed one only
        ((_final(30), _NOW, 200 * _MB, 500 * _MB, 10e6), True, "stop", "70.0 s of 25.0 s"),
        ((_final(30), _NOW, 0, 200 * _MB, 10e6), False, "snapshot", "20.0 s of 25.0 s"),
        # past: what is sealed goes, nothing more
        ((_final(-10), _NOW, 200 * _MB, 500 * _MB, 10e6), True, "stop", "of -5.0 s"),
        ((_final(-10), _NOW), False, "stop", "beyond the reserve"),
        # malformed time or hibernate without one: never 120 s, but at once
        ((_final(None), _NOW, 200 * _MB, 500 * _MB, 10e6), True, "snapshot", "at an unknown time"),
        ((_final(None), _NOW, 1000 * _MB, 500 * _MB, 10e6), True, "snapshot", "nobody says when"),
        ((_final(None, "hibernate"), _NOW, 0, 500 * _MB, 10e6), False, "snapshot", "at an unknown time"),
        ((_final(40, "hibernate"), _NOW, 0, 500 * _MB, 10e6), False, "stop", "50.0 s of 35.0 s"),
        # nothing measured yet
        ((_final(30), _NOW), False, "snapshot", "25 s beyond the reserve"),
        ((_final(RESERVE_S), _NOW), False, "stop", "0 s are left"),
    ],
)
def test_final_notices(known: tuple[Any, ...], upload_now: bool, plan: str, numbers: str) -> None:
    decision = decide(Situation(*known))
    assert (decision.upload_now, decision.plan) == (upload_now, plan)
    assert numbers in decision.why
    assert "\n" not in decision.why


@pytest.mark.fault(75)
def test_after_the_last_snapshot_the_trainer_stops() -> None:
    assert decide(Situation(_final(100), _NOW, 0, 1, 1.0, answered=True)).plan == "stop"


@pytest.mark.fault(76)
def test_a_rebalance_asks_for_one_snapshot_and_then_for_none() -> None:
    hint = Notice("rebalance", "rebalance", None, "hint")
    assert decide(Situation(hint, _NOW, 500 * _MB, 500 * _MB, 1.0)).plan == "snapshot"
    assert decide(Situation(hint, _NOW, 500 * _MB, 500 * _MB, 1.0, answered=True)).plan == "continue"


def test_without_a_notice_everything_goes_on() -> None:
    decision = decide(Situation(None, _NOW, 500 * _MB))
    assert (decision.upload_now, decision.plan) == (False, "continue")


@pytest.mark.fault(48)
def test_uploads_that_outlast_any_notice_are_declared() -> None:
    assert overrun(100 * _MB, 1e6) == ""
    warning = overrun(200 * _MB, 1e6)
    assert "takes 200 s" in warning and "at 1.0 MB/s" in warning and "120 s" in warning
