"""What stands below the curves, whoever draws it: a row for each line of each run, and what the marks mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spotckpt.curves import words
from spotckpt.curves.chart import Chart, Lane
from spotckpt.curves.course import Interruption, Kind, Line, Stretch
from spotckpt.curves.scales import Axis, Scales

MOST_EXPLAINED = 8
"""Interruptions that are told one by one."""

ODD = {"nan": "not a number", "inf": "infinite", "-inf": "-infinite"}
"""What of a value that cannot be drawn stands in a legend."""


@dataclass(frozen=True)
class Row:
    """One line of a run, left or not."""

    label: str
    lane: Lane
    line: Line
    scales: Scales
    left: bool

    def span(self, chart: Chart, stretch: Stretch) -> tuple[float, float]:
        """Of an attempt, on the chart's axis, as far as no other row has it."""
        return self.span_on(chart.look.axis, stretch)

    def span_on(self, axis: Axis, stretch: Stretch) -> tuple[float, float]:
        """The same on any axis."""
        first, last = self.scales.span(axis, stretch)
        since = self.line.since or self.lane.since
        if since:
            first = max(first, self.scales.moment(axis, since, None))
        return first, max(first, last)

    @property
    def forked_at(self) -> int | None:
        """Where the run left another one; None on lines that were left."""
        return None if self.left else self.lane.subject.forked_at

    def at(self, chart: Chart, step: int, time: float | None = None) -> float:
        """The place of a step, or of a time if that is the axis, on the chart's axis."""
        return self.scales.moment(chart.look.axis, step, time)


@dataclass(frozen=True)
class Meaning:
    """An entry of the legend: the sign is a kind of interruption, `run`, `fork`, `resume`, `again`, or of `ODD`."""

    sign: str
    text: str
    style: int = 0


def rows_of(chart: Chart) -> list[Row]:
    """Every line that the axis can place, in the order of the runs."""
    return [
        Row(words.line_name(track.line) if number else lane.label, lane, track.line, scales, number > 0)
        for lane in chart.lanes
        for number, (track, scales) in enumerate(zip(lane.subject.tracks, lane.scales, strict=True))
        if scales.has(chart.look.axis)
    ]


def unit_of(chart: Chart, rows: Sequence[Row]) -> tuple[float, str]:
    """By what places are divided to be shown, and the unit's name."""
    if chart.look.axis != "time":
        return 1.0, ""
    ends = [row.span(chart, one)[1] for row in rows for one in row.line.stretches]
    return words.time_unit(max([end for end in ends if np.isfinite(end)], default=0.0))


def meanings(chart: Chart, rows: Sequence[Row]) -> list[Meaning]:
    """The legend. Few interruptions are told one by one, many by their kind."""
    found = [Meaning("run", lane.label, lane.style) for lane in chart.lanes] if len(chart.lanes) > 1 else []
    for lane in chart.lanes:
        if lane.subject.ancestors:
            found.append(
                Meaning("fork", (f"{lane.label}, " if len(chart.lanes) > 1 else "") + words.fork(lane.subject))
            )
    ends = [(row, end) for row in rows for end in row.line.interruptions]
    if len(ends) <= MOST_EXPLAINED:
        whose = [f"{row.lane.label}, " if len(chart.lanes) > 1 else "" for row, _ in ends]
        found += [Meaning(end.kind, of + words.in_short(end)) for of, (_, end) in zip(whose, ends, strict=True)]
    else:
        kinds: dict[Kind, list[Interruption]] = {}
        for _, end in ends:
            kinds.setdefault(end.kind, []).append(end)
        found += [Meaning(kind, words.together(members)) for kind, members in kinds.items()]
    if any(row.line.points for row in rows):
        found.append(Meaning("resume", "can be resumed from"))
    if chart.look.axis != "time" and any(end.replayed for _, end in ends):
        found.append(Meaning("again", "lost, and trained again"))
    odd = {str(value) for panel in chart.panels for curve in panel.curves for _, value in curve.odd()}
    return found + [Meaning(value, f"a value is {ODD[value]}") for value in ODD if value in odd]
