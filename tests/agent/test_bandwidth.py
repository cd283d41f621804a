"""What a line carries, as uploads show it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.agent.bandwidth import MEASURABLE_BYTES, WINDOW_S, Bandwidth

MB = 10**6


def upload(line: Bandwidth, *, begin: float, rates: list[float], every_s: float = 0.5) -> float:
    """Sends for a second at each of the rates; returns when."""
    line.begin(begin)
    now, total = begin, 0.0
    for rate in rates:
        for _ in range(round(1 / every_s)):
            now, total = now + every_s, total + rate * every_s
            line.sent(now, int(total))
    return now


def test_nothing_is_known_before_anything_is_sent() -> None:
    line = Bandwidth()
    assert line.estimate(1.0) is None
    line.begin(1.0)
    assert line.estimate(1.1) is None
    line.sent(1.2, 1000)
    line.end(1.3)
    assert line.estimate(2.0) is None, "a thousand bytes at once say nothing"


@given(st.floats(1e3, 1e10), st.integers(3, 20), st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_a_steady_line_is_known_during_and_after_an_upload(rate: float, seconds: int, every_s: float) -> None:
    line = Bandwidth()
    now = upload(line, begin=100.0, rates=[rate] * seconds, every_s=every_s)
    assert line.estimate(now) == pytest.approx(rate, rel=0.1, abs=10)
    line.end(now)
    assert line.estimate(now + 500) == pytest.approx(rate, rel=0.1, abs=10)


@given(st.floats(1e4, 1e9), st.floats(0.0, 1.0), st.integers(0, 20))
def test_a_line_that_slows_down_is_noticed_within_the_window(rate: float, share: float, before: int) -> None:
    line = Bandwidth()
    line.end(upload(line, begin=0.0, rates=[rate] * 10))
    now = upload(line, begin=50.0, rates=[rate] * before + [share * rate] * int(WINDOW_S + 2))
    assert line.estimate(now) == pytest.approx(share * rate, rel=0.1, abs=0.02 * rate)


def test_a_line_on_which_nothing_moves_counts_for_less_every_second() -> None:
    line = Bandwidth()
    now = upload(line, begin=0.0, rates=[MB] * 10)
    estimates = [line.estimate(now + seconds) or 0.0 for seconds in range(8)]
    assert all(later < earlier for earlier, later in itertools.pairwise(estimates[:6]))
    assert 0 < estimates[-1] < 10


def test_what_was_measured_before_counts_until_an_upload_has_shown_more() -> None:
    line = Bandwidth()
    line.end(upload(line, begin=0.0, rates=[MB] * 10))
    line.begin(100.0)
    line.sent(100.1, 40 * MB)  # the kernel's buffers
    assert line.estimate(100.1) == pytest.approx(MB, rel=0.1)
    line.sent(103.0, 40 * MB)
    assert (line.estimate(103.0) or 0.0) < 0.8 * MB


def test_what_fills_the_kernels_buffers_is_not_taken_for_the_line() -> None:
    line = Bandwidth()
    line.begin(0.0)
    for tenth in range(61):
        line.sent(tenth / 10, min(18 * MB, 12 * MB + tenth * MB // 10))
    assert line.estimate(6.0) == pytest.approx(MB, rel=0.1)
    line.end(18.0)
    assert line.estimate(18.0) == pytest.approx(MB, rel=0.1)


def test_an_upload_that_is_over_at_once_is_measured_if_it_is_large_enough() -> None:
    line = Bandwidth()
    line.begin(0.0)
    line.sent(0.5, MEASURABLE_BYTES)
    line.end(0.5)
    assert line.estimate(1.0) == pytest.approx(2 * MEASURABLE_BYTES)


def test_an_upload_that_broke_off_at_once_says_nothing() -> None:
    line = Bandwidth()
    line.end(upload(line, begin=0.0, rates=[MB] * 10))
    line.begin(20.0)
    line.sent(20.1, 100 * MB)
    line.end(20.5, whole=False)
    assert line.estimate(21.0) == pytest.approx(MB, rel=0.1)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 10**10)), max_size=30), st.floats(0, 30))
def test_it_is_positive_and_finite_whatever_comes(news: list[tuple[float, int]], wait_s: float) -> None:
    line, now, total = Bandwidth(), 0.0, 0
    line.begin(now)
    for seconds, count in news:
        now, total = now + seconds, total + count
        line.sent(now, total)
        found = line.estimate(now)
        assert found is None or 0 < found < float("inf")
    found = line.estimate(now + wait_s)
    assert found is None or 0 < found < float("inf")
    line.end(now + wait_s)
    found = line.estimate(now + wait_s)
    assert found is None or 0 < found < float("inf")


def test_bytes_that_the_kernel_swallows_at_once_tell_of_the_line_when_they_have_arrived() -> None:
    line = Bandwidth()
    line.begin(0.0)
    line.sent(0.2, 4 * MEASURABLE_BYTES)  # into its buffers
    line.sent(4.0, 4 * MEASURABLE_BYTES + 300)  # and acknowledged
    line.end(4.0)
    assert line.estimate(5.0) == pytest.approx(MEASURABLE_BYTES, rel=0.01)
