"""What is drawn is decided before anybody draws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from spotckpt.curves.chart import Look, Wish, better, labels, make_chart
from spotckpt.curves.marks import meanings, rows_of
from spotckpt.curves.text import draw_text
from spotckpt.curves.words import best as best_in_words
from spotckpt.errors import UsageError
from spotckpt.snapshot.descent import Ancestor
from spotckpt.snapshot.metrics import History
from tests.curves.made import Columns, curves, eventful, eventful_subject, history, plain, subject
from tests.curves.test_course import Told


def test_one_runs_sets_share_a_panel_and_several_runs_do_not() -> None:
    alone = make_chart([eventful_subject()], Look())
    assert [panel.title for panel in alone.panels] == ["loss", "top1"]
    assert [(one.label, one.style) for one in alone.panels[0].curves if not one.left] == [("train", 0), ("valid", 1)]
    assert {one.style for one in alone.panels[1].curves} == {1}, "a set has the same colour in every panel"
    both = make_chart([eventful_subject(), plain("s3://bucket/other", curves(500), 500)], Look())
    assert [panel.title for panel in both.panels] == ["train/loss", "valid/loss", "valid/top1"]
    assert [(one.label, one.style) for one in both.panels[0].curves if not one.left] == [("resnet50", 0), ("other", 1)]


@pytest.mark.parametrize(
    ("wish", "drawn"),
    [
        ("valid/top1", {"valid/top1"}),
        ("valid/*", {"valid/top1", "valid/loss"}),
        ("loss", {"train/loss", "valid/loss"}),
        ("*/top?:min", {"valid/top1"}),
    ],
)
def test_metrics_are_chosen_by_name_and_pattern(wish: str, drawn: set[str]) -> None:
    chart = make_chart([eventful_subject()], Look(), [Wish.parse(wish)])
    assert {curve.metric for panel in chart.panels for curve in panel.curves} == drawn
    assert set(chart.others) == {"train/loss", "valid/loss", "valid/top1"} - drawn


def test_a_metric_that_nobody_logged_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"valid/acc.*train/loss, valid/loss, valid/top1"):
        make_chart([eventful_subject()], Look(), [Wish.parse("valid/acc")])
    for bad in ("", ":max", "loss:best"):
        with pytest.raises(UsageError):
            Wish.parse(bad)


def test_an_axis_that_nothing_tells_of_is_an_error() -> None:
    with pytest.raises(UsageError, match="axis of epoch"):
        make_chart([plain("s3://b/r", history(train__loss=Columns(range(5), range(5))))], Look(axis="epoch"))


def test_what_is_left_out_is_told() -> None:
    metrics = history(**{f"train__m{number}": Columns([1], [1.0]) for number in range(12)})
    chart = make_chart([plain("s3://b/r", metrics)], Look())
    assert len(chart.panels) == 8 and chart.others == tuple(f"train/m{number}" for number in range(8, 12))


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        *((f"valid/{name}", "max") for name in ("top1", "top-5", "accuracy", "AUC", "mAP", "f1", "bleu")),
        *((f"valid/{name}", "min") for name in ("loss", "val_loss", "perplexity", "error", "rmse", "wer")),
        *((f"train/{name}", "") for name in ("lr", "grad_norm", "throughput", "momentum")),
    ],
)
def test_which_way_is_better(metric: str, mode: str) -> None:
    assert better(metric) == mode


def test_the_best_value_is_found_among_all_and_says_how_to_go_back_to_it() -> None:
    values = np.full(5000, 0.5)
    values[[17, 1234, 4000]] = math.inf, 0.75, 0.75
    metrics = history(valid__top1=Columns(range(5000), values), valid__lr=Columns([0], [1.0]))
    chart = make_chart([plain("s3://b/r", metrics, 1000, 1234)], Look(columns=10))
    [curve] = [one for panel in chart.panels for one in panel.curves if one.metric == "valid/top1"]
    assert curve.best is not None and (curve.best.value, curve.best.step) == (0.75, 1234)
    told = best_in_words(curve, curve.best, chart.lanes[0])
    assert told == "best valid/top1 0.75 at step 1234: resume with s3://b/r@step=1234"
    least = make_chart([plain("s3://b/r", metrics, 1000)], Look(), [Wish.parse("top1:min")]).panels[0].curves[0]
    assert least.best is not None and least.best.value == 0.5
    [none] = [one for panel in chart.panels for one in panel.curves if one.metric == "valid/lr"]
    assert none.best is None


def test_a_line_that_was_left_is_drawn_from_where_it_was_left() -> None:
    [panel, _] = make_chart([eventful_subject()], Look()).panels
    [left] = [one for one in panel.curves if one.left and one.metric == "train/loss"]
    assert left.steps[:2].tolist() == [499, 500] and left.steps[-1] == 899
    assert left.best is None


def test_what_a_fork_shares_with_a_run_beside_it_is_drawn_once() -> None:
    parent = replace(eventful_subject(), run_id="parent")
    [at] = [point for point in parent.tracks[0].line.points if point.step == 600]
    told = Told()
    first = told.attempt(1, 600, ended="forked")
    told.attempt(2, 800, base=first[0], ended="finished")
    forked = subject(
        "s3://bucket/fork", told.lines(), curves(800), ancestors=(Ancestor("parent", "s3://b/x", at.snapshot, None),)
    )
    beside = make_chart([parent, forked], Look()).panels[0].curves
    assert [one.steps[0] for one in beside if one.label == "fork"] == [599]
    alone = make_chart([forked], Look())
    assert alone.panels[0].curves[0].steps[0] == 0
    assert alone.lanes[0].line.interruptions == (), "to be forked is no interruption"
    assert [one.text for one in meanings(alone, rows_of(alone)) if one.sign == "fork"] == [
        "forked from s3://b/x at step 600"
    ]
    lines = [line.plain for line in draw_text(alone, width=80, unicode=True, coloured=False)]
    [row] = [line for line in lines if line.strip().startswith("fork ")]
    assert row.count("▶") == 1 and "▶ forked from s3://b/x at step 600" in lines


def test_labels_are_the_shortest_ends_that_differ() -> None:
    assert labels(["s3://b/x/run"]) == ["run"]
    assert labels(["s3://b/x/run", "s3://b/y/run"]) == ["x/run", "y/run"]
    assert labels(["s3://b/run", "s3://b/run@step=3"]) == ["run", "run@step=3"]


def test_places_on_other_axes() -> None:
    lane = make_chart([eventful_subject()], Look()).lanes[0]
    steps = np.array([0, 50, 100, 299, 300, 400, 1011])
    epochs = lane.scales[0].place("epoch", steps)
    assert epochs == pytest.approx([0, 0.5, 1, 2.99, 3, 4, 10.11])
    times = lane.scales[0].place("time", steps)
    # attempt n began at 1000 n, in the tests' catalog: step 300 is when the second had just begun
    assert times == pytest.approx([0, 50, 100, 299, 1000, 1400, 6011], abs=1.5)
    assert lane.scales[0].moment("time", 300, 1341.0) == 341.0, "an end has a time of its own"


def test_one_epoch_and_steps_beyond_those_that_are_known() -> None:
    metrics = history(train__loss=Columns(range(10), range(10), per_epoch=100))
    scales = make_chart([plain("s3://b/r", metrics)], Look()).lanes[0].scales[0]
    assert scales.place("epoch", np.array([0, 9])).tolist() == [0, 0]
    metrics = history(train__loss=Columns(range(0, 250), range(250), per_epoch=100))
    scales = make_chart([plain("s3://b/r", metrics)], Look()).lanes[0].scales[0]
    assert scales.place("epoch", np.array([249, 300])) == pytest.approx([2.49, 3.0])


def test_steps_of_the_caller_s_own_are_placed_by_their_epochs() -> None:
    class Own(Columns):
        given = True

    metrics = History()
    for step in range(250):
        metrics.log("train", {"loss": float(step)}, step=step, epoch=step // 100)
    for epoch in range(3):
        metrics.log("valid", {"a": 0.1 * epoch, "matrix": np.eye(2)}, step=epoch, epoch=epoch, given=True)
        for sample in (0, 500):
            metrics.log("valid", {"b": 1.0}, step=1000 * epoch + sample, epoch=epoch, given=True)
    chart = make_chart([plain("s3://b/r", metrics, 250)], Look(), [Wish.parse("a:max"), Wish.parse("b")])
    one, two = (panel.curves[0] for panel in chart.panels)
    assert one.steps.tolist() == [100, 200, 250] and two.steps.tolist() == [50, 100, 150, 200, 225, 250]
    assert one.best is not None and (one.best.value, one.best.step) == (0.2, 250)
    nothing_tells = history(train__loss=Columns(range(9), range(9)), valid__a=Own(range(3), range(3)))
    [_, panel] = make_chart([plain("s3://b/r", nothing_tells, 9)], Look()).panels
    assert panel.curves[0].steps.tolist() == [0, 1, 2] and panel.curves[0].own_steps
    assert [p.curves for p in make_chart([plain("s3://b/r", nothing_tells, 9)], Look(axis="time")).panels][1] == ()


def test_the_mean_is_over_steps_and_beside_the_values() -> None:
    metrics = history(train__loss=Columns(range(0, 100, 10), range(10)))
    curve = make_chart([plain("s3://b/r", metrics)], Look(smoothing=30)).panels[0].curves[0]
    assert curve.means is not None and curve.means.tolist()[:4] == [0, 0.5, 1, 2]
    assert curve.shown is curve.means and curve.values.tolist() == list(range(10))


def test_a_line_that_went_wrong_and_was_left_does_not_flatten_the_others() -> None:
    lines = eventful().lines()
    wrong = history(train__loss=Columns(range(500, 900), np.geomspace(1, 1e9, 400)))
    right = history(train__loss=Columns(range(1000), np.linspace(2, 1, 1000)))
    [panel] = make_chart([subject("s3://b/r", lines, right, *[wrong] * (len(lines) - 1))], Look()).panels
    assert panel.limits(log=False, margin=0.0) == (1.0, 2.5)
    assert panel.limits(log=False, margin=0.1) == pytest.approx((0.85, 2.65))
    low, high = panel.limits(log=True, margin=0.0) or (0, 0)
    assert (low, high) == pytest.approx((0.0, 1.5 * math.log10(2)))


def test_ten_million_points_are_thinned() -> None:
    metrics = history(train__loss=Columns(np.arange(10_000_000), np.zeros(10_000_000)))
    curve = make_chart([plain("s3://b/r", metrics, 10_000_000)], Look(columns=500)).panels[0].curves[0]
    assert curve.count == 10_000_000 and len(curve.steps) <= 2000
