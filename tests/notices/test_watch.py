"""The loop around a source: transitions, back-off, handlers that fail."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Sequence

import pytest

from spotckpt.notices.ec2 import Ec2Metadata, Poll
from spotckpt.notices.notice import AFTERMATH_S, Notice, most_urgent
from spotckpt.notices.watch import ABSENT_LIMIT_S, RETRY_LIMIT_S, STEADY_LOOKS, Watcher, next_delay_s
from tests.support.imds import SPOT_PATH, running_imds


def test_delays_back_off_and_are_capped() -> None:
    assert next_delay_s("answers", failures=50, interval_s=5.0) == 5.0
    assert [next_delay_s("failing", failures=n, interval_s=5.0) for n in (1, 2, 3, 4, 99)] == [
        5.0,
        10.0,
        20.0,
        RETRY_LIMIT_S,
        RETRY_LIMIT_S,
    ]
    assert [next_delay_s("absent", failures=n, interval_s=5.0) for n in (1, 2, 99)] == [5.0, 10.0, ABSENT_LIMIT_S]
    assert next_delay_s("disabled", failures=99, interval_s=5.0) == ABSENT_LIMIT_S


@pytest.mark.fault(73)
def test_transitions_are_logged_once_and_polls_are_not(caplog: pytest.LogCaptureFixture) -> None:
    looks = threading.Semaphore(0)
    with running_imds() as imds, caplog.at_level(logging.DEBUG):
        watcher = Watcher(Ec2Metadata(imds.endpoint, timeout_s=60), lambda _: looks.release(), interval_s=0.01)
        watcher.start()
        _await(looks, 4)
        imds.answers[SPOT_PATH] = (503, "")
        _await(looks, 4)
        imds.answers.pop(SPOT_PATH)
        _await(looks, STEADY_LOOKS + 1)
        watcher.stop(timeout_s=60)
    lines = [record.getMessage() for record in caplog.records if record.name == "spotckpt.notices.watch"]
    assert [line.split(" (")[0] for line in lines] == [
        "the metadata service answers: watching for interruption notices",
        "the metadata service fails in part",
        "the metadata service answers: watching for interruption notices",
    ]


@pytest.mark.fault(73)
def test_a_service_that_comes_and_goes_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    looks = threading.Semaphore(0)
    well, partly, down = Poll((), "answers"), Poll((), "answers", "a path fails"), Poll((), "failing", "no answer")
    states: Iterator[Poll] = itertools.cycle([well, down, well, partly])

    class Fickle:
        def poll(self) -> Poll:
            looks.release()
            return next(states)

        def close(self) -> None:
            pass

    with caplog.at_level(logging.DEBUG):
        watcher = Watcher(Fickle(), lambda _: None, interval_s=0.01)
        watcher.start()
        _await(looks, 60)
        watcher.stop(timeout_s=60)
    lines = [record.getMessage() for record in caplog.records if record.name == "spotckpt.notices.watch"]
    assert [line.split(" (")[0] for line in lines] == [
        "the metadata service answers: watching for interruption notices",
        "the metadata service fails",
        "the metadata service fails in part",
    ]


def test_a_handler_that_fails_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    looks = threading.Semaphore(0)

    def fail(notices: Sequence[Notice]) -> None:
        looks.release()
        raise RuntimeError("handler")

    class Quiet:
        def poll(self) -> Poll:
            return Poll((), "answers")

        def close(self) -> None:
            pass

    watcher = Watcher(Quiet(), fail, interval_s=0.01)
    watcher.start()
    _await(looks, 3)
    watcher.stop(timeout_s=60)
    assert "a look for notices failed" in caplog.text


def test_a_final_notice_is_in_force_until_a_while_after_its_deadline() -> None:
    known, unknown = Notice("spot", "terminate", 100.0, "a"), Notice("lifecycle", "terminate", None, "b")
    assert known.in_force(100.0 + AFTERMATH_S - 1, first_seen=0.0)
    assert not known.in_force(100.0 + AFTERMATH_S, first_seen=99.0 + AFTERMATH_S)
    assert unknown.in_force(50.0 + AFTERMATH_S - 1, first_seen=50.0)
    assert not unknown.in_force(50.0 + AFTERMATH_S, first_seen=50.0)


def test_the_most_urgent_is_final_before_hint_and_early_before_late() -> None:
    hint = Notice("rebalance", "rebalance", None, "hint")
    late, early = Notice("spot", "stop", 200.0, "late"), Notice("maintenance", "stop", 100.0, "early")
    unknown = Notice("lifecycle", "terminate", None, "unknown")
    assert most_urgent([]) is None
    assert most_urgent([hint]) is hint
    assert most_urgent([hint, late, early]) is early
    assert most_urgent([hint, late, early, unknown]) is unknown


def _await(looks: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert looks.acquire(timeout=60)
