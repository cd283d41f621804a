"""The course of a run is told by its records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from spotckpt.curves.course import Line, find_lines, untold_ends
from spotckpt.snapshot.catalog import Catalog
from spotckpt.snapshot.keys import SnapshotId, claim_key, heartbeat_key, manifest_key
from spotckpt.snapshot.losses import Reached
from spotckpt.snapshot.records import Base, Claim, Heartbeat, Holder

NOW = 10_000.0


class Told:
    """A catalog, told attempt by attempt. Attempt n begins at 1000 n; it is at step s at 1000 n + s."""

    def __init__(self) -> None:
        self.catalog = Catalog(claims={}, bases={}, heartbeats={}, written={})
        self.snapshots: set[SnapshotId] = set()

    def attempt(
        self,
        number: int,
        *steps: int,
        base: SnapshotId | None = None,
        reached: int = 0,
        ended: str | None = "gone",
        selector: str = "newest",
        consumed: tuple[str, ...] = (),
        beat_at: float | None = None,
    ) -> list[SnapshotId]:
        """`ended` None: it was not released."""
        found, catalog = self.catalog, self.catalog
        ids = [SnapshotId(number, place, step, f"{step:08x}") for place, step in enumerate(steps)]
        self.snapshots.update(ids)
        reached = max([reached, *steps])
        first = 0 if base is None else base.step
        found.claims[number] = Claim(number, "n", 1000.0 * number, Holder(host=f"host-{number}"))  # type: ignore[index]
        found.bases[number] = Base(number, None if base is None else str(base), selector, consumed)  # type: ignore[index]
        found.heartbeats[number] = Heartbeat(  # type: ignore[index]
            number,
            1,
            1000.0 * number + reached if beat_at is None else beat_at,
            ended is not None,
            reached=Reached(reached, float(reached - max([first, *steps]))),
            ended=ended or "",
        )
        catalog.written[claim_key(number)] = 1000.0 * number  # type: ignore[index]
        for one in ids:
            catalog.written[manifest_key(one)] = 1000.0 * number + one.step  # type: ignore[index]
        return ids

    def whole(self) -> Catalog:
        return Catalog(
            highest=max(self.catalog.claims, default=0),
            claims=self.catalog.claims,
            bases=self.catalog.bases,
            heartbeats=self.catalog.heartbeats,
            written=self.catalog.written,
            snapshots=frozenset(self.snapshots),
        )

    def lines(self, tip: SnapshotId | None = None, finished: Sequence[SnapshotId] = ()) -> list[Line]:
        return find_lines(self.whole(), now=NOW, tip=tip, finished=finished)


def spans(line: Line) -> list[tuple[int, int, int]]:
    return [(one.attempt, one.first, one.last) for one in line.stretches]


def ends(line: Line) -> list[tuple[int, int, int, str]]:
    return [(one.attempt, one.step, one.replayed, one.kind) for one in line.interruptions]


def test_nothing_is_committed() -> None:
    told = Told()
    assert told.lines() == []
    told.attempt(1)
    assert told.lines() == []


def test_an_interruption_costs_the_steps_since_the_commit_and_is_where_the_next_attempt_goes_on() -> None:
    told = Told()
    first = told.attempt(1, 50, 100, reached=130, ended="spot notice (terminate)")
    told.attempt(2, 150, base=first[1], ended="finished")
    [line] = told.lines()
    assert spans(line) == [(1, 0, 100), (2, 100, 150)]
    assert line.stretches[0].host == "host-1" and line.stretches[1].began == 2000.0
    assert line.stretches[0].clock == ((0, 1000.0), (50, 1050.0), (100, 1100.0), (130, 1130.0))
    [end] = line.interruptions
    assert (end.attempt, end.step, end.reached, end.replayed, end.seconds) == (1, 100, 130, 30, 30.0)
    assert (end.cause, end.kind, end.at, end.resumed_by) == ("spot notice (terminate)", "notice", 1130.0, 2)
    assert [point.selector for point in line.points] == ["step=50", "step=100", "step=150"]
    assert line.points[0].at == 1050.0


@pytest.mark.parametrize(
    ("ended", "kind", "cause"),
    [
        ("SIGTERM", "notice", "SIGTERM"),
        ("manual notice (stop)", "notice", "manual notice (stop)"),
        ("unnoticedError", "error", "unnoticedError"),
        ("gone", "killed", "killed: the process went without a word"),
        (None, "killed", "machine lost: no sign of life"),
        ("ValueError", "error", "ValueError"),
        ("Ctrl-C", "user", "Ctrl-C"),
        ("", "user", "ended"),
    ],
)
def test_causes(ended: str | None, kind: str, cause: str) -> None:
    told = Told()
    first = told.attempt(1, 10, ended=ended)
    told.attempt(2, 20, base=first[0], ended="finished")
    assert [(one.kind, one.cause) for one in told.lines()[0].interruptions] == [(kind, cause)]


def test_the_end_of_a_finished_run_and_a_longer_one_after_it_are_no_interruptions() -> None:
    told = Told()
    first = told.attempt(1, 10, ended="finished")
    told.attempt(2, 20, base=first[0], ended="finished")
    assert told.lines()[0].interruptions == ()


def test_a_snapshot_that_somebody_pushed_is_no_interruption() -> None:
    told = Told()
    first = told.attempt(1, 10, ended="pushed")
    told.attempt(2, 20, base=first[0], ended="finished")
    assert told.lines()[0].interruptions == ()


@pytest.mark.parametrize("ended", ["", "gone", None])
def test_who_left_no_word_may_have_finished(ended: str | None) -> None:
    """Its agent died after the last commit, or was of a version that told nothing: the manifest knows."""
    told = Told()
    first = told.attempt(1, 5, 10, ended=ended)
    assert untold_ends(told.whole()) == first[1:]
    assert ends(told.lines()[0]) == [(1, 10, 0, "user" if ended == "" else "killed")]
    assert told.lines(finished=first[1:])[0].interruptions == ()
    second = told.attempt(2, 20, base=first[1], ended="ValueError")
    assert ends(told.lines(finished=first[1:])[0]) == [(2, 20, 0, "error")], "the run was made longer"
    assert untold_ends(told.whole()) == first[1:], "nobody need ask for what was told"
    told.attempt(3, base=second[0], ended=ended)
    assert [one.attempt for one in told.lines(finished=first[1:])[0].interruptions] == [2, 3], "it came to nothing"


def test_times_are_the_stores_where_it_tells_them() -> None:
    told = Told()
    first = told.attempt(1, 10, reached=14, beat_at=90_000.0)
    told.catalog.written[heartbeat_key(1)] = 1014.0  # type: ignore[index]
    [line] = told.lines()
    assert line.stretches[0].clock == ((0, 1000.0), (10, 1010.0), (14, 1014.0))
    assert line.interruptions[0].at == 1014.0
    told.attempt(2, 30, base=first[0], ended=None, beat_at=0.0)
    told.catalog.written[heartbeat_key(2)] = NOW - 5  # type: ignore[index]
    assert ends(told.lines()[0]) == [(1, 10, 4, "killed")], "a machine whose clock is slow lives"
    told.catalog.written.update(dict.fromkeys(told.catalog.written, math.inf))  # type: ignore[attr-defined]
    [line] = told.lines()
    assert line.stretches[0].clock == ((0, 1000.0), (14, 90_000.0)) and line.stretches[0].began == 1000.0
    assert line.points[0].at is None


def test_a_run_that_waits_to_be_resumed_and_one_that_lives() -> None:
    told = Told()
    told.attempt(1, 10, reached=14, ended="SIGTERM")
    [end] = told.lines()[0].interruptions
    assert (end.step, end.replayed, end.resumed_by) == (10, 4, None)
    told.attempt(1, 10, reached=14, ended=None, beat_at=NOW - 5)
    [line] = told.lines()
    assert line.interruptions == () and spans(line) == [(1, 0, 14)]


def test_an_attempt_that_committed_nothing_is_on_no_line_and_cost_time() -> None:
    told = Told()
    first = told.attempt(1, 100, reached=110)
    told.attempt(2, base=first[0], reached=120)
    told.attempt(3, 200, base=first[0], ended="finished")
    [line] = told.lines()
    assert spans(line) == [(1, 0, 100), (3, 100, 200)]
    assert ends(line) == [(1, 100, 10, "killed"), (2, 100, 20, "killed")]


def test_attempts_that_ended_before_the_first_commit_of_all() -> None:
    told = Told()
    told.attempt(1, reached=3)
    told.attempt(2, reached=4)
    told.attempt(3, 10, ended="finished")
    [line] = told.lines()
    assert ends(line) == [(1, 0, 3, "killed"), (2, 0, 4, "killed")]


def test_going_back_is_no_interruption_and_what_was_left_is_a_line_of_its_own() -> None:
    told = Told()
    first = told.attempt(1, 50, 100, reached=130)
    second = told.attempt(2, 150, 200, base=first[1], ended="Ctrl-C")
    told.attempt(3, 100, base=first[0], selector="step=50", consumed=("step=50",), ended="finished")
    main, left = told.lines()
    assert spans(main) == [(1, 0, 50), (3, 50, 100)] and main.interruptions == ()
    # @step=50 was followed: told again it would mean the newest
    assert [point.selector for point in main.points] == [str(first[0]), "step=100"]
    assert (left.tip, left.since, left.left_by) == (second[1], 50, "step=50")
    assert spans(left) == [(1, 0, 100), (2, 100, 200)]
    assert ends(left) == [(1, 100, 30, "killed")], "though a snapshot of step 100 is on the main line too"
    assert [point.selector for point in left.points] == [str(one) for one in (first[1], *second)]
    assert main.stretches[0].clock == ((0, 1000.0), (50, 1050.0)), "the rest of its time went to the line that was left"
    assert left.stretches[0].clock[-1] == (130, 1130.0)


def test_a_restart_after_going_back_goes_on() -> None:
    told = Told()
    first = told.attempt(1, 50, 100, ended="Ctrl-C")
    second = told.attempt(2, 70, base=first[0], selector="step=50", consumed=("step=50",), reached=75)
    told.attempt(3, 90, base=second[0], consumed=("step=50",), ended="finished")
    main = told.lines()[0]
    assert ends(main) == [(2, 70, 5, "killed")]


def test_beginning_afresh_leaves_a_line_from_its_start() -> None:
    told = Told()
    first = told.attempt(1, 50, ended="Ctrl-C")
    told.attempt(2, selector="start", consumed=("start",))
    assert [line.tip for line in told.lines()] == first, "nothing is committed yet: what was left is shown"
    told.attempt(2, 20, selector="start", consumed=("start",), ended="finished")
    main, left = told.lines()
    assert (main.tip.attempt, left.tip.attempt, left.since) == (2, 1, 0)


def test_up_to_an_earlier_snapshot() -> None:
    told = Told()
    first = told.attempt(1, 50, 100)
    told.attempt(2, 150, base=first[1], ended="finished")
    [line] = told.lines(first[0])
    assert (line.tip, spans(line), line.interruptions) == (first[0], [(1, 0, 50)], ())
    assert [point.selector for point in line.points] == ["step=50"]
    assert line.stretches[0].clock == ((0, 1000.0), (50, 1050.0))
