"""The curves in a terminal of any width, or in a pipe, with or without UTF-8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from spotckpt.curves import words
from spotckpt.curves.chart import COLOURS, Chart, Curve, Panel
from spotckpt.curves.marks import Row, meanings, rows_of, unit_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_LABEL = 9
"""Columns for the values beside a panel."""
_LEAST = 8
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille character's dots, by row and column (Unicode, chapter 21.1)."""


@dataclass(frozen=True)
class Signs:
    """What is drawn with."""

    points: str
    marks: dict[str, str]
    best: str
    bar: str
    braille: bool


_MARKS = {"run": "-", "fork": ">", "notice": "v", "killed": "x", "error": "!", "user": "s"}
ASCII = Signs("*o+#%@&", {**_MARKS, "resume": "|", "again": "=", "nan": "?", "inf": "^", "-inf": "_"}, "*", "-=", False)
UNICODE = Signs(
    "●○▲△■□◆",
    {
        **{"run": "━", "fork": "▶", "notice": "▼", "killed": "✖", "error": "◆", "user": "■"},
        **{"resume": "╵", "again": "▔", "nan": "?", "inf": "▲", "-inf": "▼"},
    },
    "★",
    "─━",
    True,
)


@dataclass(frozen=True)
class _Frame:
    """From places on the axis to columns."""

    low: float
    high: float
    columns: int
    left: int

    def column(self, places: Floats) -> Floats:
        """float64, 0 to `columns` - 1; NaN for what has no place."""
        return (places - self.low) / (self.high - self.low) * (self.columns - 1)

    def cell(self, place: float) -> int:
        """The nearest column; the first for what has no place."""
        return round(float(np.nan_to_num(np.clip(self.column(np.array([place]))[0], 0, self.columns - 1))))


def draw_text(chart: Chart, *, width: int, unicode: bool, coloured: bool) -> Iterator[Text]:
    """Line by line, none longer than the width, if that is 20 or more.

    Args:
        chart: what is drawn.
        width: in columns.
        unicode: whether more than ASCII can be shown.
        coloured: whether colours can tell curves apart.
    """
    signs, rows = UNICODE if unicode else ASCII, rows_of(chart)
    divisor, unit = unit_of(chart, rows)
    frame = _frame(chart, rows, width)
    for lane in chart.lanes[:1] if len(chart.lanes) == 1 else ():
        yield _fitted(Text(lane.subject.uri, "bold"), width)
    for panel in chart.panels:
        yield Text()
        yield from _panel(chart, panel, frame, signs, coloured)
    if not chart.panels:
        yield Text("no number was logged", "dim")
    for row in rows:
        yield from _row(chart, row, frame, signs)
    yield from _axis(chart, frame, divisor, unit)
    yield from _legend(chart, rows, signs, width)


def _frame(chart: Chart, rows: Sequence[Row], width: int) -> _Frame:
    ends = [edge for row in rows for one in row.line.stretches for edge in row.span(chart, one)]
    for panel in chart.panels:
        for curve in panel.curves:
            ends += curve.scales.place(chart.look.axis, curve.steps[[0, -1]]).tolist()
    known = [end for end in ends if np.isfinite(end)] or [0.0]
    low, high = min(known), max(known)
    left = max([_LABEL, *(min(len(row.label), width // 4) for row in rows)])
    return _Frame(low, high if high > low else low + 1.0, max(_LEAST, width - left - 1), left)


def _panel(chart: Chart, panel: Panel, frame: _Frame, signs: Signs, coloured: bool) -> Iterator[Text]:
    """A line with the names, then the curves with the highest and the lowest value beside them."""
    height = 14 if len(chart.panels) == 1 else 9
    braille = signs.braille and (coloured or len({curve.style for curve in panel.curves}) == 1)
    width = frame.left + 1 + frame.columns
    yield _fitted(Text(panel.title, "bold"), width)
    bests = {id(curve): best for curve, best in panel.bests()}
    for curve in panel.curves:
        if not curve.left:
            best = bests.get(id(curve))
            told = f"  {signs.best} {words.number(best.value)} at step {best.step}" if best else ""
            sign = signs.points[curve.style % len(signs.points)]
            yield _fitted(Text.assemble((sign, _colour(curve)), f" {curve.label}{told}"), width)
    limits = panel.limits(log=chart.look.log, margin=0.0)
    grid = _Grid(frame.columns, height, braille, limits or (0.0, 1.0), log=chart.look.log)
    for curve in sorted(panel.curves, key=lambda curve: not curve.left):
        grid.draw(frame.column(curve.scales.place(chart.look.axis, curve.steps)), curve, signs)
        for step, value in curve.odd():
            column = frame.cell(curve.scales.moment(chart.look.axis, step, None))
            grid.put(column, 0 if value == np.inf else height - 1, signs.marks[str(value)], _colour(curve))
    for curve, best in panel.bests():
        if chart.look.log and best.value <= 0:
            continue  # it has no place
        column = frame.cell(curve.scales.moment(chart.look.axis, best.step, None))
        grid.put(column, grid.line(best.value), signs.best, f"bold {_colour(curve)}")
    for number, line in enumerate(grid.lines()):
        label = ""
        if limits is not None and number in (0, height - 1):
            limit = limits[0 if number else 1]
            label = words.number(10**limit if chart.look.log else limit)
        yield Text.assemble((label.rjust(frame.left) + ("┤" if signs.braille else "|"), "dim"), line)


class _Grid:
    """Characters, and in braille eight dots in each."""

    def __init__(self, columns: int, height: int, braille: bool, limits: tuple[float, float], *, log: bool) -> None:
        self._size = columns, height
        self._fine = (2, 4) if braille else (1, 1)
        self._log = log
        self._low, self._high = limits
        self._dots = np.zeros((height, columns), dtype=np.int64)
        self._signs: list[list[str]] = [[" "] * columns for _ in range(height)]
        self._styles: list[list[str]] = [[""] * columns for _ in range(height)]

    def line(self, value: float) -> int:
        """The line of a value, from the top."""
        return int(self._rows(np.array([value]))[0]) // self._fine[1]

    def put(self, column: int, line: int, sign: str, style: str) -> None:
        """One character over whatever is there."""
        self._dots[line, column] = 0
        self._signs[line][column], self._styles[line][column] = sign, style

    def draw(self, columns: Floats, curve: Curve, signs: Signs) -> None:
        """A line through the points; none through those that are not finite."""
        sign = signs.points[curve.style % len(signs.points)]
        style = f"dim {_colour(curve)}" if curve.left else _colour(curve)
        values = np.where(curve.shown > 0, curve.shown, np.nan) if self._log else curve.shown
        x, y = columns * self._fine[0], self._rows(np.where(np.isfinite(values), values, np.nan))
        beyond = self._beyond(values)
        known = np.isfinite(x) & np.isfinite(y) & ~(beyond & np.concatenate(([False], beyond[:-1])))
        for place in np.flatnonzero(known):
            to = place + 1 if place + 1 < len(x) and known[place + 1] else place
            for line, column in _stroke(x[place], y[place], x[to], y[to]):
                self._dot(line, min(column, self._size[0] * self._fine[0] - 1), sign, style)

    def _beyond(self, values: Floats) -> NDArray[np.bool_]:
        """Which values the limits leave out."""
        with np.errstate(invalid="ignore"):
            known = np.log10(values) if self._log else values
        found: NDArray[np.bool_] = (known > self._high) | (known < self._low)
        return found

    def _rows(self, values: Floats) -> Floats:
        """float64: from the top, in the finest unit."""
        with np.errstate(divide="ignore", invalid="ignore"):
            known = np.log10(values) if self._log else values
        height = self._size[1] * self._fine[1]
        found: Floats = np.clip((self._high - known) / (self._high - self._low), 0, 1) * (height - 1)
        return found

    def _dot(self, fine_line: int, fine_column: int, sign: str, style: str) -> None:
        line, column = fine_line // self._fine[1], fine_column // self._fine[0]
        if self._fine == (1, 1):
            self._signs[line][column] = sign
        else:
            self._dots[line, column] |= _DOTS[fine_line % 4][fine_column % 2]
        self._styles[line][column] = style

    def lines(self) -> Iterator[Text]:
        """From the top."""
        for dots, signs, styles in zip(self._dots.tolist(), self._signs, self._styles, strict=True):
            line = Text()
            for bits, sign, style in zip(dots, signs, styles, strict=True):
                line.append(chr(0x2800 + bits) if bits else sign, style or None)
            line.rstrip()
            yield line


def _stroke(x: float, y: float, to_x: float, to_y: float) -> Iterator[tuple[int, int]]:
    """(line, column) of every place between two points."""
    count = int(max(abs(to_x - x), abs(to_y - y))) + 2
    lines, columns = np.rint(np.linspace(y, to_y, count)), np.rint(np.linspace(x, to_x, count))
    yield from zip(lines.astype(int).tolist(), columns.astype(int).tolist(), strict=True)


def _row(chart: Chart, row: Row, frame: _Frame, signs: Signs) -> Iterator[Text]:
    """The attempts of a line, their ends, and below them where one can go on from."""
    bar = [" "] * frame.columns
    for number, stretch in enumerate(row.line.stretches):
        first, last = (frame.cell(edge) for edge in row.span(chart, stretch))
        if first == last:
            continue
        bar[first : last + 1] = signs.bar[number % 2] * (last + 1 - first)
        name = str(stretch.attempt)
        if last - first > len(name) + 1:
            middle = (first + last - len(name) + 1) // 2
            bar[middle : middle + len(name)] = name
    if row.forked_at is not None:
        bar[frame.cell(row.at(chart, row.forked_at))] = signs.marks["fork"]
    for end in row.line.interruptions:
        bar[frame.cell(row.at(chart, end.step, end.at))] = signs.marks[end.kind]
    points = [" "] * frame.columns
    for point in row.line.points:
        points[frame.cell(row.at(chart, point.step, point.at))] = signs.marks["resume"]
    label = _end(row.label, frame.left, signs).rjust(frame.left)
    style = COLOURS[row.lane.style % len(COLOURS)]
    yield Text.assemble(f"{label} ", ("".join(bar).rstrip(), f"dim {style}" if row.left else style))
    yield Text(f"{'':{frame.left + 1}}{''.join(points)}".rstrip())


def _axis(chart: Chart, frame: _Frame, divisor: float, unit: str) -> Iterator[Text]:
    """The two ends of the axis, and between them what it is."""
    low, high = (words.number(edge / divisor) for edge in (frame.low, frame.high))
    title = words.axis_title(chart, unit)
    room = frame.columns - len(low) - len(high)
    middle = title.center(room) if len(title) + 2 <= room else " " * max(1, room)
    yield Text(f"{'':{frame.left + 1}}{low}{middle}{high}", "dim")


def _legend(chart: Chart, rows: Sequence[Row], signs: Signs, width: int) -> Iterator[Text]:
    for meaning in meanings(chart, rows):
        if meaning.sign not in ("run", "again"):  # the panels name the runs; there is no room for what is replayed
            yield from _folded(f"{signs.marks[meaning.sign]} {meaning.text}", width)


def _folded(text: str, width: int) -> Iterator[Text]:
    from textwrap import wrap

    for line in wrap(text, max(width, 20), subsequent_indent="  "):
        yield Text(line)


def _colour(curve: Curve) -> str:
    return COLOURS[curve.style % len(COLOURS)] if curve.style % len(COLOURS) != len(COLOURS) - 1 else "default"


def _fitted(text: Text, width: int) -> Text:
    text.truncate(max(width, 20))
    return text


def _end(text: str, most: int, signs: Signs) -> str:
    return text if len(text) <= most else ("…" if signs.braille else "~") + text[1 - most :]
