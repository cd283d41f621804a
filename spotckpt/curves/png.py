"""The curves as a picture, with matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spotckpt.curves import words
from spotckpt.curves.chart import COLOURS, Chart, Curve, Panel
from spotckpt.curves.course import Interruption
from spotckpt.curves.marks import Row, meanings, rows_of, unit_of
from spotckpt.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
_MOST_PIXELS = 1 << 15
"""In height: half of what matplotlib can, and a hundred panels."""
_LETTER = 0.06
"""Inches that a letter of a legend takes, about."""
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)))
_MARKS: dict[str, Any] = {
    **{"notice": "v", "killed": "X", "error": "D", "user": "s", "fork": ">"},
    **{"resume": "|", "nan": "x", "inf": 6, "-inf": 7},
}
_INK, _SHADE, _FAINT = "#333333", "#EDF1F5", "#8A8A8A"
_TEXT = {"font.size": 8.5, "axes.titlesize": 9.5, "legend.fontsize": 8, "axes.labelsize": 8.5}


def draw_png(chart: Chart, *, width: int = 1200) -> bytes:
    """The picture.

    Args:
        chart: what is drawn.
        width: in pixels; the height follows from what there is.

    Raises:
        UsageError: matplotlib is not installed, or there are too many panels for it.
    """
    buffer = io.BytesIO()
    make_figure(chart, width=width).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def make_figure(chart: Chart, *, width: int) -> Figure:
    """What `draw_png` draws. Nothing global of matplotlib is touched."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("a picture needs matplotlib", hint='pip install "spotckpt[curves]"') from error
    inches, rows = width / DPI, rows_of(chart)
    handles, columns, legend = _handles(chart, rows, inches)
    heads = [_Head(chart, panel, inches) for panel in chart.panels]
    below = 0.3 + 0.24 * len(rows)
    heights = [min(2.3, max(1.5, 0.32 * inches)) + 0.2 * head.lines for head in heads] or [1.5]
    high = sum(heights) + below + legend + 0.8
    if high * DPI > _MOST_PIXELS:
        raise UsageError(f"{len(heads)} panels do not fit into a picture", hint="choose some, or draw a page: --html")
    with matplotlib.rc_context(_TEXT):
        figure = Figure(figsize=(inches, high), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        ratios = [*heights, below]
        axes = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        divisor, unit = unit_of(chart, rows)
        for place, head in enumerate(heads):
            _draw_panel(axes[place], chart, head, divisor)
        if not chart.panels:
            axes[0].set_yticks([])
            axes[0].text(0.5, 0.5, "no number was logged", transform=axes[0].transAxes, ha="center", color=_FAINT)
        _draw_rows(axes[-1], chart, rows, divisor)
        axes[-1].set_xlabel(words.axis_title(chart, unit))
        _head(figure, chart, handles, columns)
        _ticks(axes[-1], chart, inches)
    return figure


def _colour(style: int) -> tuple[str, Any]:
    return COLOURS[style % len(COLOURS)], _DASHES[style // len(COLOURS) % len(_DASHES)]


class _Head:
    """The metric's name, and beside it, or below where there is no room, its curves and their best values.

    Attributes:
        lines: below the name.
    """

    def __init__(self, chart: Chart, panel: Panel, inches: float) -> None:
        bests = {id(curve): f"  ★ {words.number(best.value)} at {best.step}" for curve, best in panel.bests()}
        self.panel = panel
        self.named = [one for one in panel.curves if not one.left and (len(chart.lanes) == 1 or id(one) in bests)]
        room = int(0.6 * inches / _LETTER)
        told = [bests.get(id(one), "") for one in self.named]
        self.names = [
            _cut(one.label, max(6, min(24, room - len(best)))) + best
            for one, best in zip(self.named, told, strict=True)
        ]
        taken = len(panel.title) * _LETTER * 1.3 + sum(len(name) * _LETTER + 0.45 for name in self.names)
        self.lines = 0 if taken < inches - 1.2 else len(self.names)

    def draw(self, axes: Axes) -> None:
        """As a title and a legend."""
        from matplotlib.lines import Line2D

        pad = 6.0 + 13.0 * self.lines
        axes.set_title(self.panel.title, loc="left", fontweight="bold", color=_INK, pad=pad)
        handles = [
            Line2D([], [], color=_colour(one.style)[0], linestyle=_colour(one.style)[1], label=name)
            for one, name in zip(self.named, self.names, strict=True)
        ]
        if handles:
            axes.legend(
                handles=handles,
                loc="lower left" if self.lines else "lower right",
                bbox_to_anchor=(0.0 if self.lines else 1.0, 0.99),
                ncols=1 if self.lines else len(handles),
                frameon=False,
                borderpad=0.1,
                borderaxespad=0.1,
                handlelength=1.4,
                labelspacing=0.2,
                columnspacing=1.2,
            )


def _draw_panel(axes: Axes, chart: Chart, head: _Head, divisor: float) -> None:
    from matplotlib.ticker import LogFormatter

    panel = head.panel
    limits = panel.limits(log=chart.look.log, margin=0.06)
    if chart.look.log and limits is not None:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter())
    if len(chart.lanes) == 1:
        _shade(axes, chart, divisor)
    for curve in panel.curves:
        _draw_curve(axes, chart, curve, divisor)
    for curve, best in panel.bests():
        place = curve.scales.moment(chart.look.axis, best.step, None) / divisor
        colour = _colour(curve.style)[0]
        look = {"marker": "*", "markersize": 11, "color": colour, "markeredgecolor": "white"}
        axes.plot([place], [best.value], zorder=5, clip_on=False, **look)
    if limits is not None:
        axes.set_ylim(*(10**limit for limit in limits) if chart.look.log else limits)
    head.draw(axes)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if limits is None:
        axes.set_yticks([])


def _draw_curve(axes: Axes, chart: Chart, curve: Curve, divisor: float) -> None:
    colour, dashes = _colour(curve.style)
    x = curve.scales.place(chart.look.axis, curve.steps) / divisor
    y = np.where(np.isfinite(curve.shown), curve.shown, np.nan)
    strength = {"alpha": 0.55, "linewidth": 0.9, "linestyle": ":"} if curve.left else {"linewidth": 1.3}
    if curve.means is not None and not curve.left:
        axes.plot(x, np.where(np.isfinite(curve.values), curve.values, np.nan), color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(x, y, **{"color": colour, "linestyle": dashes, "solid_joinstyle": "round", **strength})
    alone = _alone(y)
    axes.plot(x[alone], y[alone], color=colour, marker="o", markersize=3.5, linestyle="")
    for step, value in curve.odd():
        place = curve.scales.moment(chart.look.axis, step, None) / divisor
        axes.plot(
            [place],
            [1.0 if value == np.inf else 0.0],
            transform=axes.get_xaxis_transform(),
            marker=_MARKS[str(value)],
            color=colour,
            markersize=5,
            clip_on=False,
            linestyle="",
        )


def _alone(y: Any) -> Any:
    """Which points have no neighbour, so that no line shows them."""
    known = np.concatenate(([False], np.isfinite(y), [False]))
    return known[1:-1] & ~known[:-2] & ~known[2:]


def _shade(axes: Axes, chart: Chart, divisor: float) -> None:
    """Every other attempt of the only run, and where it was interrupted."""
    lane = chart.lanes[0]
    scales, line = lane.scales[0], lane.line
    for number, stretch in enumerate(line.stretches):
        if number % 2:
            first, last = scales.span(chart.look.axis, stretch)
            axes.axvspan(first / divisor, last / divisor, color=_SHADE, linewidth=0, zorder=0)
    for end in line.interruptions:
        place = scales.moment(chart.look.axis, end.step, end.at) / divisor
        axes.axvline(place, color=_FAINT, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)


def _draw_rows(axes: Axes, chart: Chart, rows: Sequence[Row], divisor: float) -> None:
    for place, row in enumerate(rows):
        colour = _colour(row.lane.style)[0]
        for number, stretch in enumerate(row.line.stretches):
            first, last = (edge / divisor for edge in row.span(chart, stretch))
            look = {"color": colour, "alpha": 0.5 if number % 2 else 0.28, "height": 0.2 if row.left else 0.46}
            axes.barh([place], [last - first], left=[first], **look)
        points = [row.at(chart, one.step, one.at) / divisor for one in row.line.points]
        axes.plot(points, [place + 0.33] * len(points), marker="|", markersize=4, color=_INK, linestyle="")
        if row.forked_at is not None:
            at = row.at(chart, row.forked_at) / divisor
            axes.plot([at], [place], marker=_MARKS["fork"], color=_INK, markeredgecolor="white", markersize=7)
        for end in row.line.interruptions:
            _draw_interruption(axes, chart, row, end, place=place, divisor=divisor)
        _number_attempts(axes, chart, row, place, divisor)
    most = min(28, int(3.2 * axes.figure.bbox.width / DPI))
    axes.set_yticks(range(len(rows)), [_cut(row.label, most) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _draw_interruption(axes: Axes, chart: Chart, row: Row, end: Interruption, *, place: int, divisor: float) -> None:
    at = row.at(chart, end.step, end.at) / divisor
    if chart.look.axis != "time":  # there it is no stretch of its own
        again = row.at(chart, end.reached) / divisor
        axes.plot([at, again], [place - 0.3] * 2, color=_INK, linewidth=2.0, solid_capstyle="butt")
    look = {"marker": _MARKS[end.kind], "markersize": 7, "color": _INK, "markeredgecolor": "white"}
    axes.plot([at], [place], clip_on=False, **look)


def _number_attempts(axes: Axes, chart: Chart, row: Row, place: int, divisor: float) -> None:
    """The numbers of attempts, where there is room for them."""
    if row.left:
        return
    spans = [row.span(chart, one) for one in row.line.stretches]
    whole = max(last for _, last in spans) - min(first for first, _ in spans)
    for stretch, (first, last) in zip(row.line.stretches, spans, strict=True):
        if whole > 0 and (last - first) / whole > 0.05:
            axes.text((first + last) / 2 / divisor, place, str(stretch.attempt), ha="center", va="center", fontsize=7)


def _ticks(axes: Axes, chart: Chart, inches: float) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=max(3, int(inches)), steps=[1, 2, 5, 10], integer=chart.look.axis != "time")
    )
    if chart.look.axis == "step" and axes.get_xlim()[1] >= 1e5:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _head(figure: Figure, chart: Chart, handles: Sequence[Any], columns: int) -> None:
    """The address, and what the marks mean."""
    title = chart.lanes[0].subject.uri if len(chart.lanes) == 1 else f"{len(chart.lanes)} runs"
    room = int(figure.get_figwidth() * 11)
    figure.suptitle(_cut(title, room), x=0.01, ha="left", fontsize=10, color=_INK)
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, handlelength=1.6)


def _handles(chart: Chart, rows: Sequence[Row], inches: float) -> tuple[list[Any], int, float]:
    """What the marks mean, in how many columns, and how high that will be, in inches."""
    from matplotlib.lines import Line2D

    handles = []
    for meaning in meanings(chart, rows):
        room = max(12, int((inches - 0.7) / _LETTER))
        label = textwrap.fill(meaning.text, room)
        if meaning.sign == "run":
            colour, dashes = _colour(meaning.style)
            handles.append(Line2D([], [], color=colour, linestyle=dashes, label=_cut(meaning.text, min(40, room))))
        elif meaning.sign == "again":
            handles.append(Line2D([], [], color=_INK, linewidth=2.0, label=label))
        else:
            marker = _MARKS[meaning.sign]
            handles.append(Line2D([], [], marker=marker, color=_INK, linestyle="", markersize=6, label=label))
    labels = [str(handle.get_label()) for handle in handles]
    columns = max(1, int((inches - 0.1) / (max(map(len, labels), default=1) * _LETTER + 0.55)))
    lines = sum(label.count("\n") + 1 for label in labels)
    return handles, columns, 0.2 * -(-lines // columns)


def _cut(text: str, most: int) -> str:
    """The end tells more than the beginning."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
