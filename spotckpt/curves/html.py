"""The curves as a page: one file with everything in it, which needs no network. Drawn by plotly.js in the browser."""

from __future__ import annotations

import base64
import html
import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from spotckpt.curves import words
from spotckpt.curves.chart import COLOURS, Chart, Curve, Panel
from spotckpt.curves.marks import ODD, Row, rows_of
from spotckpt.curves.scales import Axis, Scales
from spotckpt.errors import UsageError
from spotckpt.snapshot.metrics import Best

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AXES: tuple[Axis, ...] = ("step", "epoch", "time")
_DASHES = ("solid", "dash", "dot", "dashdot")
_MOST_ODD = 100
"""Of a curve: each is an element of the page."""


def draw_html(chart: Chart) -> str:
    """The page: 4.8 MB of plotly.js, and what is drawn.

    Raises:
        UsageError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UsageError("a page needs plotly", hint='pip install "spotckpt[curves]"') from error
    page = files("spotckpt.curves").joinpath("page.html").read_text(encoding="utf-8")
    uris = [lane.subject.uri for lane in chart.lanes]
    title = uris[0] if len(uris) == 1 else f"{len(uris)} runs"
    data = json.dumps(_document(chart), allow_nan=False).replace("<", "\\u003c")
    texts = {"TITLE": html.escape(title), "DATA": data, "PLOTLY": get_plotlyjs()}
    return re.sub("@(TITLE|DATA|PLOTLY)@", lambda found: texts[found[1]], page)


def _document(chart: Chart) -> dict[str, Any]:
    rows = rows_of(chart)
    axes: list[Axis] = [
        axis for axis in _AXES if all(scales.has(axis) for lane in chart.lanes for scales in lane.scales)
    ]
    times = [row.scales.span("time", one)[1] for row in rows for one in row.line.stretches if "time" in axes]
    divisor, unit = words.time_unit(max([time for time in times if np.isfinite(time)], default=0.0))
    placer = _Placer(tuple(axes), divisor)
    return {
        "axis": chart.look.axis if chart.look.axis in axes else axes[0],
        "axes": {axis: f"{unit} since the run began" if axis == "time" else axis for axis in axes},
        "log": chart.look.log,
        "panels": [_panel(chart, panel, placer) for panel in chart.panels],
        "rows": [_row(row, placer) for row in rows],
        "single": len(chart.lanes) == 1,
        "others": list(chart.others),
    }


class _Placer:
    """Gives places on all axes, so that the page can change between them."""

    def __init__(self, axes: tuple[Axis, ...], divisor: float) -> None:
        self._divisors = {axis: divisor if axis == "time" else 1.0 for axis in axes}

    def column(self, scales: Scales, steps: NDArray[np.int64]) -> dict[str, str]:
        """Of many steps, packed."""
        return {axis: _packed(scales.place(axis, steps) / by) for axis, by in self._known_by(scales)}

    def place(self, scales: Scales, step: int, time: float | None = None) -> dict[str, float | None]:
        """Of one step, or time."""
        return {axis: _plain(scales.moment(axis, step, time) / by) for axis, by in self._known_by(scales)}

    def _known_by(self, scales: Scales) -> list[tuple[Axis, float]]:
        return [one for one in self._divisors.items() if scales.has(one[0])]

    def span(self, row: Row, stretch: Any) -> dict[str, list[float | None]]:
        """Of an attempt."""
        return {axis: [_plain(edge / by) for edge in row.span_on(axis, stretch)] for axis, by in self._divisors.items()}


def _panel(chart: Chart, panel: Panel, placer: _Placer) -> dict[str, Any]:
    bests = {id(curve): best for curve, best in panel.bests()}
    limits = {name: panel.limits(log=name == "log", margin=0.06) for name in ("linear", "log")}
    return {
        "title": panel.title,
        "limits": limits,
        "curves": [_curve(chart, one, bests.get(id(one)), placer) for one in panel.curves],
    }


def _curve(chart: Chart, curve: Curve, best: Best | None, placer: _Placer) -> dict[str, Any]:
    lane = chart.lanes[curve.run]
    odd = [{"x": placer.place(curve.scales, step), "value": str(value)} for step, value in curve.odd()]
    return {
        "label": curve.label,
        "metric": curve.metric,
        "colour": COLOURS[curve.style % len(COLOURS)],
        "dash": "dot" if curve.left else _DASHES[curve.style // len(COLOURS) % len(_DASHES)],
        "left": curve.left,
        "steps": _packed(curve.steps.astype(np.float64)),
        "x": placer.column(curve.scales, curve.steps),
        "y": _packed(curve.values),
        "means": None if curve.means is None else _packed(curve.means),
        "count": curve.count,
        "odd": [{**one, "text": f"{curve.label}: {ODD[str(one['value'])]}"} for one in odd[:_MOST_ODD]],
        "best": None
        if best is None
        else {
            "x": placer.place(curve.scales, best.step),
            "y": best.value,
            "text": words.best(curve, best, lane),
        },
    }


def _row(row: Row, placer: _Placer) -> dict[str, Any]:
    uri = row.lane.subject.uri
    return {
        "label": row.label if len(row.label) <= 24 else f"…{row.label[-23:]}",
        "run": row.lane.label,
        "colour": COLOURS[row.lane.style % len(COLOURS)],
        "left": row.left,
        "fork": None
        if row.forked_at is None
        else {"x": placer.place(row.scales, row.forked_at), "text": words.fork(row.lane.subject)},
        "attempts": [
            {"attempt": one.attempt, "x": placer.span(row, one), "text": words.attempt(one)}
            for one in row.line.stretches
        ],
        "ends": [
            {
                "kind": end.kind,
                "x": placer.place(row.scales, end.step, end.at),
                "again": placer.place(row.scales, end.reached),
                "text": words.interruption(end),
            }
            for end in row.line.interruptions
        ],
        "points": [
            {
                "x": placer.place(row.scales, point.step, point.at),
                "text": words.resume_point(uri, point),
                "address": words.address(uri, point),
            }
            for point in row.line.points
        ],
    }


def _packed(values: NDArray[np.float64]) -> str:
    """Base64 of float64, little-endian."""
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
