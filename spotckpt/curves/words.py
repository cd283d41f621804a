"""What is said of the places on a chart, by every picture in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from spotckpt.curves.chart import Chart, Curve, Lane, Subject
from spotckpt.curves.course import Interruption, Kind, Line, ResumePoint, Stretch
from spotckpt.snapshot.metrics import Best

KINDS: dict[Kind, str] = {
    "notice": "interrupted by a notice or SIGTERM",
    "killed": "killed, or machine lost",
    "error": "ended by an error",
    "user": "stopped by hand",
}

_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def number(value: float) -> str:
    """A metric's value, at most five digits."""
    return f"{value:.5g}"


def amount(count: int, unit: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def seconds(value: float) -> str:
    """`12 s`, `3.5 min`, `2.1 h`."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} s" if value >= 9.5 or not value else f"{value:.1f} s"


def moment(at: float | None) -> str:
    """`2026-03-01 12:00:00 UTC`; empty if nobody knows, or who told it was off by ages."""
    try:
        return "" if at is None else datetime.fromtimestamp(at, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return ""


def axis_title(chart: Chart, unit: str) -> str:
    """Below the axis."""
    return f"{unit} since the run began" if chart.look.axis == "time" else chart.look.axis


def time_unit(longest: float) -> tuple[float, str]:
    """The seconds in a unit in which so many of them read well, and its name."""
    return next(((size, name) for size, name in _UNITS if longest >= 2 * size), _UNITS[-1])


def cost(ends: Iterable[Interruption]) -> str:
    """What they cost together: `41 steps, 12 s lost`."""
    ends = list(ends)
    steps = sum(end.replayed for end in ends)
    return f"{amount(steps, 'step')}, {seconds(sum(end.seconds for end in ends))} lost" if steps else "nothing lost"


def interruption(end: Interruption) -> str:
    """One line."""
    went_on = f"attempt {end.resumed_by} went on" if end.resumed_by else "not resumed yet: it would go on"
    return (
        f"attempt {end.attempt} ended at step {end.reached}: {end.cause}; {went_on} from step {end.step}: "
        f"{amount(end.replayed, 'step')} replayed, {seconds(end.seconds)} lost"
    )


def resume_point(uri: str, point: ResumePoint) -> str:
    """One line, with the address that goes on from there."""
    when = f", {moment(point.at)}" if point.at is not None else ""
    return f"step {point.step}{when}: resume with {address(uri, point)}"


def address(uri: str, point: ResumePoint) -> str:
    """What goes on from there."""
    return f"{_run_of(uri)}@{point.selector}"


def fork(subject: Subject) -> str:
    """Where a fork comes from."""
    return f"forked from {subject.ancestors[0].uri} at step {subject.forked_at}"


def attempt(stretch: Stretch) -> str:
    """One line."""
    where = f" on {stretch.host}" if stretch.host else ""
    when = f", {moment(stretch.began)}" if stretch.began is not None else ""
    return f"attempt {stretch.attempt}, steps {stretch.first} to {stretch.last}{where}{when}"


def best(curve: Curve, found: Best, lane: Lane) -> str:
    """The best value, and how to go back to it, or to the last snapshot before it."""
    points = lane.line.points
    exact = [point for point in points if point.step == found.step]
    before = [point for point in points if point.step < found.step]
    where = f"{_run_of(lane.subject.uri)}@"
    if curve.own_steps:
        way = ""
    elif exact:
        way = f": resume with {where}{exact[-1].selector}"
    else:
        way = f"; the snapshot before it: {where}{before[-1].selector}" if before else ""
    return f"best {curve.metric} {number(found.value)} at step {found.step}{way}"


def line_name(line: Line) -> str:
    """Of a line that was left."""
    return f"left for @{line.left_by}" if line.left_by else "left"


def in_short(end: Interruption) -> str:
    """One interruption for a legend: where, why, and its cost."""
    return f"step {end.step}: {end.cause.partition(':')[0]}, {cost([end])}"


def together(ends: Sequence[Interruption]) -> str:
    """Those of a kind for a legend."""
    return f"{len(ends)} {KINDS[ends[0].kind]}, {cost(ends)}"


def _run_of(uri: str) -> str:
    """Without a selector."""
    head, slash, tail = uri.rpartition("/")
    return f"{head}{slash}{tail.partition('@')[0]}"
