"""A training's boundaries, from its process to the agent's."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from spotckpt.agent.pace import Boundaries, Pace, PaceWriter, read_pace


def paced(intervals: list[float]) -> Pace:
    boundaries, now = Boundaries(), 100.0
    pace = boundaries.passed(7, now)
    for step, seconds in enumerate(intervals, start=8):
        now += seconds
        pace = boundaries.passed(step, now)
    return pace


@given(st.floats(0.001, 100), st.integers(1, 100))
def test_the_next_boundary_comes_when_the_last_ones_came(seconds: float, count: int) -> None:
    pace = paced([seconds] * count)
    assert abs((pace.next_s(pace.at) or 0.0) - seconds) < 1e-6
    assert abs((pace.next_s(pace.at + seconds / 2) or 0.0) - seconds / 2) < 1e-6
    assert pace.next_s(pace.at + seconds * 1.2) == 0.0, "any moment"
    assert pace.next_s(pace.at + seconds * 2 + 1.0) is None, "overdue: nobody knows"


@given(st.floats(0.01, 1), st.lists(st.floats(10, 1000), max_size=5))
def test_an_evaluation_does_not_change_what_is_usual(seconds: float, evaluations: list[float]) -> None:
    pace = paced([seconds] * 10 + [item for pause in evaluations for item in (pause, seconds, seconds)])
    assert abs(pace.usual_s - seconds) < 1e-6
    assert pace.began == 100.0


def test_nothing_is_known_of_the_first_boundary() -> None:
    assert paced([]).next_s(100.0) is None


def test_it_is_read_while_it_is_written_and_after_its_writer_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "pace"
    assert read_pace(path) is None
    times = iter([10.0, 10.5, 11.0])
    writer = PaceWriter(path, now=lambda: next(times))
    assert read_pace(path) is None
    for step in (1, 2, 3):
        writer.boundary(step)
        found = read_pace(path)
        assert found is not None and found.step == step
    del writer
    assert read_pace(path) == Pace(3, 11.0, 10.0, 0.5)


def test_what_is_torn_or_not_ours_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pace"
    PaceWriter(path, now=lambda: 1.0).boundary(1)
    whole = path.read_bytes()
    for torn in (whole[:-1], whole + b"x", b"", whole[:3] + b"\xff" + whole[4:]):
        path.write_bytes(torn)
        assert read_pace(path) is None
