"""What is drawn, whoever draws it: panels with curves, a lane for each run, and what there is to say of places."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from spotckpt.curves.course import Line
from spotckpt.curves.scales import Axis, Scales, has_own_steps, own_scales, run_steps, scales_of
from spotckpt.curves.thin import smooth, thin
from spotckpt.errors import UsageError
from spotckpt.snapshot.descent import Ancestor
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.metrics import Best, History, Series

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    _Columns = tuple[Ints, Ints, Floats]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart, without the yellow, which a white page hides."""

_MOST, _LEAST = 1e120, 1e-120
"""What is larger is drawn as infinite, and on a logarithmic scale what is smaller as 0: the range of a panel, with its
margins, must stay a number, on either scale. No float32 comes near."""

_HIGHER = re.compile(r"acc|top-?\d|\bap\b|map$|auc|f1|iou|dice|bleu|rouge|precision|recall|score|r2|psnr|ssim|reward")
_LOWER = re.compile(r"loss|err|perplexity|ppl|nll|mse|mae|rmse|\bwer\b|\bcer\b|\bfid\b|entropy|\bkl\b")


@dataclass(frozen=True)
class Wish:
    """A metric to be drawn: `valid/top1`, `valid/*`, `*/loss:min`."""

    glob: str
    mode: str = ""

    @classmethod
    def parse(cls, text: str) -> Wish:
        """Reads GLOB, GLOB:min or GLOB:max."""
        glob, _, mode = text.partition(":")
        if not glob or mode not in ("", "min", "max"):
            raise UsageError(f"metric {text!r} is not SET/NAME, nor with :min or :max", hint="as in valid/top1:max")
        return cls(glob if "/" in glob else f"*/{glob}", mode)


@dataclass(frozen=True)
class Look:
    """How it is drawn.

    Attributes:
        axis: what the places along it are.
        log: whether values are on a logarithmic scale.
        smoothing: over how many steps values are averaged; 0 for none.
        columns: how finely, at the most, along the axis.
    """

    axis: Axis = "step"
    log: bool = False
    smoothing: int = 0
    columns: int = 1000


@dataclass(frozen=True)
class Track:
    """A line of a run, and the metrics on it."""

    line: Line
    history: History


@dataclass(frozen=True)
class Subject:
    """A run to be drawn.

    Attributes:
        uri: its address, with a selector if only the way to that snapshot is meant.
        tracks: the main line, then those that were left.
        run_id: the run's.
        ancestors: what it was forked from, the nearest first.
    """

    uri: str
    tracks: tuple[Track, ...]
    run_id: str = ""
    ancestors: tuple[Ancestor, ...] = ()

    @property
    def forked_at(self) -> int | None:
        """The step at which it left the run that it was forked from; None if it is no fork."""
        return SnapshotId.parse(self.ancestors[0].snapshot).step if self.ancestors else None


@dataclass(frozen=True)
class Curve:
    """A metric along a line, thinned to what shows.

    Attributes:
        run: which of the chart's lanes.
        label: for the legend.
        metric: as in `valid/top1`.
        style: which colour, and beyond those which dashes.
        left: of a line that was left.
        scales: of its line.
        steps: int64[n].
        epochs: int64[n], -1 outside epochs.
        values: float64[n].
        means: float64[n] of the last steps' values each; None without smoothing.
        count: of the values before thinning.
        mode: which way is better, `min`, `max` or empty.
        best: of all values of a main line; None if nobody says which way is better.
        own_steps: the steps are not the run's, and nothing tells which of the run's they were.
    """

    run: int
    label: str
    metric: str
    style: int
    left: bool
    scales: Scales
    steps: Ints
    epochs: Ints
    values: Floats
    means: Floats | None
    count: int
    mode: str
    best: Best | None
    own_steps: bool = False

    @property
    def shown(self) -> Floats:
        """What the eye should follow."""
        return self.values if self.means is None else self.means

    def odd(self) -> Iterator[tuple[int, float]]:
        """(step, value) of what is not a number or infinite, of several in a row the first."""
        before = 0.0
        for step, value in zip(self.steps.tolist(), self.values.tolist(), strict=True):
            if not np.isfinite(value) and str(value) != str(before):
                yield step, value
            before = value


@dataclass(frozen=True)
class Panel:
    """Curves of one metric, or of one name in several sets."""

    title: str
    curves: tuple[Curve, ...]

    def limits(self, *, log: bool, margin: float) -> tuple[float, float] | None:
        """The lowest and the highest value that is shown, both of the logarithm to base 10 if that is drawn.

        Of lines that were left, often because they went wrong, no more than half of the main lines' range beyond it.

        Args:
            log: values are on a logarithmic scale, so that only those above 0 are shown.
            margin: added at both ends, of the range.

        Returns:
            None if there is nothing to show.
        """
        main, left = (_known_values((one for one in self.curves if one.left == is_left), log) for is_left in (0, 1))
        main, left = (main, left) if len(main) else (left, main)
        if not len(main):
            return None
        low, high = float(main.min()), float(main.max())
        span = high - low or abs(high) or 1.0
        if len(left):
            low, high = max(min(low, left.min()), low - span / 2), min(max(high, left.max()), high + span / 2)
        if high == low:
            low, high = low - span / 2, high + span / 2
        span = high - low
        return float(low - margin * span), float(high + margin * span)

    def bests(self) -> list[tuple[Curve, Best]]:
        """The best value of each curve; of more than two, the best of all."""
        found = [(curve, curve.best) for curve in self.curves if curve.best is not None]
        if len(found) <= 2:
            return found
        return [max(found, key=lambda one: one[1].value if one[0].mode == "max" else -one[1].value)]


def _known_values(curves: Iterable[Curve], log: bool) -> Floats:
    found = np.concatenate([np.zeros(0), *(curve.values for curve in curves)])
    known: Floats = found[np.isfinite(found) & ((found > _LEAST) | (not log))]
    return np.asarray(np.log10(known)) if log else known


@dataclass(frozen=True)
class Lane:
    """A run below the curves. Up to step `since` it is drawn by the run that it was forked from."""

    label: str
    style: int
    subject: Subject
    scales: tuple[Scales, ...]
    since: int = 0

    @property
    def line(self) -> Line:
        """Its main line."""
        return self.subject.tracks[0].line


@dataclass(frozen=True)
class Chart:
    """All of it. `others` are metrics that are there and not drawn."""

    look: Look
    panels: tuple[Panel, ...]
    lanes: tuple[Lane, ...]
    others: tuple[str, ...] = ()


def make_chart(subjects: Sequence[Subject], look: Look, wishes: Sequence[Wish] = (), *, most: int = 8) -> Chart:
    """Decides what is drawn.

    Args:
        subjects: the runs.
        look: how.
        wishes: the metrics; all, but at most `most` panels of them, if there is none.
        most: see `wishes`.

    Raises:
        UsageError: no run has a metric that was wished for, or the axis is not known.
    """
    known = _known(subjects)
    wanted = _wanted(known, wishes)
    names = labels([subject.uri for subject in subjects])
    lanes = tuple(_lane(number, name, subjects) for number, name in enumerate(names))
    if not any(scales.has(look.axis) for lane in lanes for scales in lane.scales):
        raise UsageError(f"nothing tells where on an axis of {look.axis} anything lies", hint="use --axis step")
    titles = list(dict.fromkeys(_title(metric, subjects) for metric in wanted))
    shown = titles if wishes else titles[:most]
    drawn = [metric for metric in wanted if _title(metric, subjects) in shown]
    sets = list(dict.fromkeys(metric.partition("/")[0] for metric in known))
    panels = []
    for title in shown:
        ours = [metric for metric in drawn if _title(metric, subjects) == title]
        curves = (curve for metric in ours for lane in lanes for curve in _curves(metric, lane, look, wishes))
        panels.append(Panel(title, tuple(_of_set(curve, sets) if len(lanes) == 1 else curve for curve in curves)))
    return Chart(look, tuple(panels), lanes, tuple(metric for metric in known if metric not in drawn))


def better(metric: str) -> str:
    """`min` or `max` if the metric's name tells which is better, else empty."""
    name = metric.partition("/")[2].lower()
    return "min" if _LOWER.search(name) else "max" if _HIGHER.search(name) else ""


def labels(uris: Sequence[str]) -> list[str]:
    """The shortest ends of the addresses, in whole parts, that tell them apart."""
    parts = [uri.split("/") for uri in uris]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        found = ["/".join(one[-depth:]) for one in parts]
        if len(set(found)) == len(set(uris)):
            return found
    return list(uris)


def _known(subjects: Sequence[Subject]) -> list[str]:
    """Metrics that are numbers, in the order of their first run."""
    found: dict[str, None] = {}
    for subject in subjects:
        for track in subject.tracks:
            for set_, names in track.history.items():
                found.update({f"{set_}/{name}": None for name, series in names.items() if series.is_scalar})
    return list(found)


def _wanted(known: Sequence[str], wishes: Sequence[Wish]) -> list[str]:
    for wish in wishes:
        if not any(fnmatchcase(metric, wish.glob) for metric in known):
            has = f"there are {', '.join(known)}" if known else "no number was logged"
            raise UsageError(f"no metric is called {wish.glob}", hint=has)
    return [metric for metric in known if not wishes or any(fnmatchcase(metric, wish.glob) for wish in wishes)]


def _title(metric: str, subjects: Sequence[Subject]) -> str:
    """One run's sets share a panel; of several runs, each metric has its own, or nobody could tell the curves apart."""
    return metric.partition("/")[2] if len(subjects) == 1 else metric


def _lane(number: int, label: str, subjects: Sequence[Subject]) -> Lane:
    subject = subjects[number]
    began = [one.clock[0][1] for track in subject.tracks for one in track.line.stretches if one.clock]
    origin = min(began, default=None)
    scales = tuple(scales_of(track.line, track.history, origin=origin) for track in subject.tracks)
    return Lane(label, number, subject, scales, _since(subject, subjects))


def _since(subject: Subject, subjects: Sequence[Subject]) -> int:
    drawn = {
        (other.run_id, point.snapshot): point.step
        for other in subjects
        for track in other.tracks
        for point in track.line.points
    }
    return max([drawn.get((one.run_id, one.snapshot), 0) for one in subject.ancestors], default=0)


def _of_set(curve: Curve, sets: Sequence[str]) -> Curve:
    set_ = curve.metric.partition("/")[0]
    return replace(curve, label=set_, style=sets.index(set_))


def _curves(metric: str, lane: Lane, look: Look, wishes: Sequence[Wish]) -> Iterator[Curve]:
    """What the run has of a metric. What it shares with another run or line is drawn once, by that one."""
    set_, _, name = metric.partition("/")
    mode = next((one.mode for one in wishes if one.mode and fnmatchcase(metric, one.glob)), "") or better(metric)
    for number, (track, scales) in enumerate(zip(lane.subject.tracks, lane.scales, strict=True)):
        series = track.history.get(set_, {}).get(name)
        if series is None or not series.is_scalar:
            continue
        columns, own = _run_columns(series, scales), False
        if columns is None:
            columns, own, scales = series.columns(), True, own_scales(series)  # noqa: PLW2901
        columns = (*columns[:2], np.where(np.abs(columns[2]) > _MOST, np.copysign(np.inf, columns[2]), columns[2]))
        best = _best(columns, mode) if mode and not number else None
        columns = _after(columns, 0 if own else track.line.since or lane.since)
        if not len(columns[0]) or not scales.has(look.axis):
            continue
        count = len(columns[0])
        curve = Curve(
            lane.style, lane.label, metric, lane.style, number > 0, scales, *columns, None, count, mode, best, own
        )
        yield _thinned(curve, look)


def _run_columns(series: Series, scales: Scales) -> _Columns | None:
    """The columns, with steps of the run; None if the metric has steps of its own, and nothing tells what they were."""
    steps, epochs, values = series.columns()
    if not has_own_steps(series):
        return steps, epochs, values
    found = run_steps(series, scales)
    return None if found is None else (found, epochs, values)


def _after(columns: _Columns, since: int) -> _Columns:
    """The columns from that step on, and the point before, from which the line is drawn."""
    steps, epochs, values = columns
    first = int(np.searchsorted(steps, since, side="left")) if since else 0
    first = first if first == len(steps) else max(0, first - 1)
    return steps[first:], epochs[first:], values[first:]


def _thinned(curve: Curve, look: Look) -> Curve:
    means = smooth(curve.steps, curve.values, look.smoothing) if look.smoothing > 1 else None
    kept = thin(curve.steps, curve.values, look.columns)
    if means is not None:
        kept = np.union1d(kept, thin(curve.steps, means, look.columns))
        means = means[kept]
    return replace(curve, steps=curve.steps[kept], epochs=curve.epochs[kept], values=curve.values[kept], means=means)


def _best(columns: _Columns, mode: str) -> Best | None:
    """The earliest of equals, of those that are finite."""
    steps, epochs, values = columns
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return None
    place = known[values[known].argmax() if mode == "max" else values[known].argmin()]
    return Best(float(values[place]), int(steps[place]), int(epochs[place]))
