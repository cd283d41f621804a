"""What the loop is told of a notice and its plan."""

from __future__ import annotations

import pytest

from spotckpt.training.news import News

URI = "file:///run"
FINAL = {"event": "notice", "final": True, "kind": "spot", "action": "terminate", "seconds_left": 100.0}


@pytest.fixture
def news() -> News:
    found = News(URI)
    found.opening = False
    return found


def test_training_goes_on_until_the_plan_says_so(news: News) -> None:
    news.hear({**FINAL, "plan": "snapshot"})
    assert news.early and news.stop is None and news.leaving is not None
    news.early = False
    news.hear({"event": "plan", "uri": "file:///another", "plan": "last", "seconds_left": 30.0})
    assert news.stop is None
    news.hear({"event": "plan", "uri": URI, "plan": "snapshot", "seconds_left": 50.0})
    assert news.early and news.stop is None
    news.hear(
        {"event": "plan", "uri": URI, "kind": "spot", "action": "terminate", "plan": "last", "seconds_left": 20.0}
    )
    assert news.stop is not None and news.stop.snapshot and news.stop.why == "spot notice (terminate)"
    assert news.stop.deadline is not None and 10 < news.stop.deadline.seconds_left <= 20


@pytest.mark.parametrize(("plan", "snapshot"), [("last", True), ("stop", False), (None, True)])
def test_there_may_be_no_time_to_go_on(news: News, plan: str | None, snapshot: bool) -> None:
    news.hear({**FINAL, "plan": plan} if plan else FINAL)
    assert news.stop is not None and news.stop.snapshot is snapshot


def test_a_plan_may_come_before_its_notice(news: News) -> None:
    news.hear({"event": "plan", "uri": URI, "plan": "stop", "seconds_left": None})
    assert news.stop is not None and not news.stop.snapshot
    news.hear({**FINAL, "plan": "snapshot"})
    assert not news.stop.snapshot


def test_without_an_agent_nobody_would_say_when_to_stop(news: News) -> None:
    news.hear({"event": "lost"})
    assert news.stop is None, "there is no notice"
    news.hear({**FINAL, "plan": "snapshot"})
    news.hear({"event": "lost"})
    assert news.stop is not None and news.stop.snapshot


@pytest.mark.fault(76)
def test_a_hint_asks_for_one_snapshot_and_changes_nothing_else(news: News) -> None:
    news.hear({"event": "notice", "final": False, "plan": "snapshot"})
    assert news.early and news.stop is None and news.leaving is None
    news.early = False
    news.hear({"event": "notice", "final": False, "plan": "continue"})
    assert not news.early
