from __future__ import annotations

from pathlib import Path

from spotckpt.deadline import SYSTEM_CLOCK, Deadline


class FakeClock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return -1.0

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def test_a_deadline_counts_down_and_never_below_zero():
    clock = FakeClock()
    deadline = Deadline.after(5, clock)
    clock.sleep(3)
    assert (deadline.seconds_left, deadline.passed) == (2, False)
    clock.sleep(3)
    assert (deadline.seconds_left, deadline.passed) == (0, True)


def test_a_clock_that_runs_backwards_only_leaves_more_time():
    clock = FakeClock()
    deadline = Deadline.after(5, clock)
    clock.time = 50
    assert deadline.seconds_left == 55


def test_within_is_the_earlier():
    clock = FakeClock()
    assert Deadline.after(5, clock).within(1).seconds_left == 1
    assert Deadline.after(5, clock).within(9).seconds_left == 5


def test_the_system_clock_counts_suspend():
    before, now, after = uptime(), SYSTEM_CLOCK.now(), uptime()
    assert before - 0.01 <= now <= after + 0.01, "which /proc tells in hundredths"


def uptime() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])
