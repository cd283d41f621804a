"""Pictures and texts: what must be in them, at widths narrow and wide; that nothing is cut off or covered."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from spotckpt.curves.chart import COLOURS, Look, Subject, Wish, make_chart
from spotckpt.curves.text import draw_text
from spotckpt.errors import UsageError
from tests.curves.made import Columns, curves, eventful_subject, history, plain

png = pytest.importorskip("spotckpt.curves.png")
image = pytest.importorskip("matplotlib.image")

ODD = [1.0, 0.9, math.nan, 0.8, math.nan, math.nan, 0.7, math.inf, 0.6, -math.inf, *[0.3] * 6, math.nan]


def ten_million() -> Subject:
    values = np.cos(np.arange(10_000_000) / 1e6)
    values[4_000_000:5_000_000] = math.nan
    values[7_000_000] = 9.0
    metrics = history(train__loss=Columns(np.arange(10_000_000), values))
    return plain("s3://bucket/big", metrics, 5_000_000, 10_000_000)


def logged(values: list[float], *steps: int) -> Subject:
    return plain("s3://bucket/run", history(train__loss=Columns(range(len(values)), values)), *steps)


CASES: dict[str, Callable[[], list[Subject]]] = {
    "eventful": lambda: [eventful_subject()],
    "many": lambda: [plain(f"s3://b/sweep/lr-{i}", curves(500, lr=0.5 + i, seed=i), 250, 500) for i in range(10)],
    "long names": lambda: [
        eventful_subject("s3://bucket/vision/resnet50-imagenet-lr-0.1-wd-1e-4-batch-256-seed-0"),
        plain("s3://bucket/vision/resnet50-imagenet-lr-0.1-wd-1e-4-batch-512-seed-0", curves(800), 400, 800),
    ],
    "none": lambda: [plain("s3://bucket/none", history())],
    "one": lambda: [logged([0.5])],
    "odd": lambda: [logged(ODD, 16)],
    "nothing finite": lambda: [logged([math.nan] * 5)],
    "ten million": lambda: [ten_million()],
}


@cache
def subjects(name: str) -> list[Subject]:
    return CASES[name]()


def pixels(picture: bytes) -> np.ndarray:
    return np.rint(image.imread(io.BytesIO(picture))[:, :, :3] * 255).astype(int)


def where(found: np.ndarray, colour: str) -> np.ndarray:
    """The columns with pixels of about that colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.flatnonzero((np.abs(found - wanted).max(axis=2) < 12).any(axis=0))


@pytest.mark.parametrize("width", [420, 1200])
@pytest.mark.parametrize("name", CASES)
def test_no_text_is_cut_off_or_covers_another(name: str, width: int) -> None:
    figure = png.make_figure(make_chart(subjects(name), Look(columns=width)), width=width)
    figure.canvas.draw()
    texts = [one for one in figure.findobj(png_text) if one.get_visible() and one.get_text().strip()]
    boxes = [(one.get_text(), one.get_window_extent()) for one in texts if drawn(one, figure)]
    for text, box in boxes:
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= figure.bbox.height + 1, text
    for (text, box), (other, another) in combinations(boxes, 2):
        overlap = min(box.x1, another.x1) - max(box.x0, another.x0), min(box.y1, another.y1) - max(box.y0, another.y0)
        assert min(overlap) < 2, f"{text!r} and {other!r}"


def png_text(artist: object) -> bool:
    return type(artist).__name__ == "Text"


def drawn(text: object, figure: object) -> bool:
    """Labels of ticks outside of the axes are made, and not drawn."""
    for axes in figure.axes:  # type: ignore[attr-defined]
        for axis, low, high in ((axes.xaxis, *axes.get_xlim()), (axes.yaxis, *axes.get_ylim())):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if text in (tick.label1, tick.label2):
                    return bool(min(low, high) <= tick.get_loc() <= max(low, high))
    return True


def test_the_picture_has_its_width_and_every_runs_colour() -> None:
    for width in (420, 1200):
        found = pixels(png.draw_png(make_chart(subjects("many"), Look(columns=width)), width=width))
        assert found.shape[1] == width
        for colour in COLOURS:
            assert len(where(found, colour)) > width / 10, colour


def test_every_other_attempt_is_shaded_and_interruptions_are_marked_where_they_were() -> None:
    chart = make_chart(subjects("eventful"), Look())
    figure = png.make_figure(chart, width=1200)
    figure.canvas.draw()
    panel = figure.axes[0]
    found = np.asarray(figure.canvas.buffer_rgba())[:, :, :3].astype(int)
    height = round(figure.bbox.height - panel.get_window_extent().y1) + 6  # a line of pixels, above all curves
    for step, shaded in ((150, False), (450, True), (650, False), (950, True)):
        colour = found[height, round(panel.transData.transform((step, 1))[0])]
        assert (colour.tolist() == [0xED, 0xF1, 0xF5]) == shaded, step
    marked = where(found[height : height + 25], "#8A8A8A")
    marked = marked[marked > panel.transData.transform((150, 1))[0]]  # there the curve is as high
    at = {round(panel.transData.transform((step, 1))[0]) for step in (300, 500, 800, 1000)}
    assert all(min(abs(place - column) for column in at) <= 2 for place in marked)
    assert all(min(abs(place - column) for place in marked) <= 2 for column in at)
    told = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    for words in (
        "step 300: spot notice (terminate), 41 steps, 41 s lost",
        "step 500: killed, 60 steps",
        "step 700: ZeroDivisionError, nothing lost",
        "can be resumed from",
        "lost, and trained again",
    ):
        assert words in told


def test_a_star_at_the_edge_is_whole_and_a_name_too_long_keeps_its_end() -> None:
    figure = png.make_figure(make_chart(subjects("one"), Look()), width=420)
    figure.canvas.draw()
    edge = round(figure.axes[0].get_window_extent().x0)
    found = where(np.asarray(figure.canvas.buffer_rgba())[:, :, :3].astype(int), COLOURS[0])
    assert edge - 3 in found and edge + 3 in found
    figure = png.make_figure(make_chart(subjects("long names"), Look()), width=420)
    first = figure.legends[0].get_texts()[0].get_text()
    assert first == "…" + "resnet50-imagenet-lr-0.1-wd-1e-4-batch-256-seed-0"[-39:]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [[1.7e308, -1.7e308], [1.7e308] * 2, [5e-324, 0.0, 1e-300], [-1.0, -2.0], [0.0] * 3, [math.inf] * 3]
)
def test_any_number_can_be_drawn(values: list[float], log: bool) -> None:
    """Values at the ends of float64, and a logarithmic scale for what has no logarithm: no error, no warning."""
    chart = make_chart([logged(values, 5)], Look(log=log, smoothing=2))
    assert png.draw_png(chart, width=500).startswith(b"\x89PNG")
    assert list(draw_text(chart, width=80, unicode=True, coloured=False))
    assert '"limits"' in pytest.importorskip("spotckpt.curves.html").draw_html(chart)


def test_a_picture_that_would_be_too_high_is_refused() -> None:
    metrics = history(**{f"train__m{number}": Columns([1, 2], [1.0, 2.0]) for number in range(150)})
    with pytest.raises(UsageError, match="150 panels do not fit into a picture; choose some"):
        png.draw_png(make_chart([plain("s3://b/r", metrics)], Look(), [Wish("*")]))


def test_a_gap_stays_a_gap_and_a_peak_a_peak() -> None:
    chart = make_chart(subjects("ten million"), Look(columns=800))
    figure = png.make_figure(chart, width=800)
    figure.canvas.draw()
    panel, found = figure.axes[0], np.asarray(figure.canvas.buffer_rgba())[:, :, :3].astype(int)
    box = panel.get_window_extent()
    inside = found[round(figure.bbox.height - box.y1) : round(figure.bbox.height - box.y0) - 8]
    drawn_at = set(where(inside, COLOURS[0]).tolist())
    left, right = (round(panel.transData.transform((step, 0))[0]) for step in (4_000_000, 5_000_000))
    assert not drawn_at & set(range(left + 4, right - 3)) and {left - 5, right + 5} <= drawn_at
    top = where(inside[: len(inside) // 4], COLOURS[0])
    assert abs(top.mean() - panel.transData.transform((7_000_000, 0))[0]) < 3


def text(name: str, width: int, *, unicode: bool = True, coloured: bool = False, **look: object) -> list[str]:
    chart = make_chart(subjects(name), Look(columns=2 * width, **look))  # type: ignore[arg-type]
    return [line.plain for line in draw_text(chart, width=width, unicode=unicode, coloured=coloured)]


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_no_line_is_longer_than_the_terminal_is_wide(name: str, unicode: bool) -> None:
    for width, coloured in ((20, False), (20, True), (79, True), (237, False)):
        lines = text(name, width, unicode=unicode, coloured=coloured)
        assert max(map(len, lines)) <= width
        assert unicode or all(line.isascii() for line in lines)


def test_the_terminal_shows_attempts_causes_costs_and_points_to_resume_from() -> None:
    lines = text("eventful", 100)
    assert lines[0] == "s3://bucket/resnet50"
    assert "● train  ★ 0.38052 at step 948" in lines
    [row] = [line for line in lines if line.strip().startswith("resnet50 ─")]
    assert [sign for sign in row if sign in "▼✖"] == ["▼", "✖", "✖", "▼"]
    assert [int(word) for word in row if word.isdigit()][2:] == [1, 2, 5, 6]
    assert lines[lines.index(row) + 1].count("╵") == 10
    assert "▼ step 300: spot notice (terminate), 41 steps, 41 s lost" in lines
    assert any("left for @step=500" in line for line in lines)


def test_without_colours_curves_are_told_apart_by_signs() -> None:
    lines = text("eventful", 80, unicode=False)
    drawn_lines = [line.partition("|")[2] for line in lines if "|" in line[:22]]
    assert {"*", "o"} <= set("".join(drawn_lines))
    braille = "".join(text("one", 80, coloured=True) + text("ten million", 80))
    assert any("\u2800" < sign <= "\u28ff" for sign in braille)


def test_the_terminal_shows_what_is_not_finite_and_leaves_gaps() -> None:
    lines = text("odd", 60, unicode=False)
    bottom = next(line for line in lines if line.strip().startswith("0.3|"))
    top = next(line for line in lines if line.strip().startswith("1|"))
    assert bottom.count("?") >= 2 and "_" in bottom and "^" in top
    assert "? a value is not a number" in lines
    logged = text("odd", 60, unicode=False, log=True)
    assert any(line.strip().startswith("0.3|") for line in logged)


def test_a_panel_without_a_curve_on_this_axis_is_empty_everywhere() -> None:
    class Own(Columns):
        given = True

    metrics = history(train__loss=Columns(range(9), range(9)), valid__a=Own(range(3), range(3)))
    chart = make_chart([plain("s3://b/r", metrics, 9)], Look(axis="time"))
    assert [len(panel.curves) for panel in chart.panels] == [1, 0]
    assert png.draw_png(chart, width=600).startswith(b"\x89PNG")
    assert "a" in [line.plain for line in draw_text(chart, width=60, unicode=True, coloured=False)]
    draw_html = pytest.importorskip("spotckpt.curves.html").draw_html
    assert '"title": "a"' in draw_html(chart)
