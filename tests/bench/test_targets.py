"""The verdicts on figures, and the form of the report, without measuring anything."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.bench import report
from tests.bench.bench import Found, Row
from tests.bench.measure import Sample, Series, Spread, interleaved
from tests.bench.targets import TARGETS, Target, Verdict, judged, missed

MOST = Target("most", "a cost", 1.2)
LEAST = Target("least", "a speed", 0.9, at_least=True)


@pytest.mark.parametrize(
    ("target", "figure", "verdict"),
    [
        (MOST, 1.2, Verdict.MET),
        (MOST, 1.59, Verdict.SHORT),
        (MOST, 1.61, Verdict.FAILED),
        (LEAST, 0.9, Verdict.MET),
        (LEAST, 0.68, Verdict.SHORT),
        (LEAST, 0.67, Verdict.FAILED),
        (MOST, None, Verdict.NOT_MEASURED),
        (LEAST, math.nan, Verdict.NOT_MEASURED),
    ],
)
def test_a_figure_fails_when_it_falls_short_by_more_than_a_third(target, figure, verdict):
    assert target.judge(figure) is verdict


def test_every_target_has_a_verdict_and_unknown_figures_are_refused():
    assert set(judged({}, quick=False)) == {target.name for target in TARGETS}
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    with pytest.raises(LookupError, match="nonsense"):
        judged({"nonsense": 1.0}, quick=True)


def test_a_short_run_is_held_to_its_own_limits():
    figures = {"help": 5.0, "blocked": 2.5, "restore": 0.5, "agent-memory": 61.0}
    assert missed(figures, quick=False) == ["blocked", "restore", "help"]
    assert missed(figures, quick=True) == ["help"]
    assert missed({"blocked": 2.7, "restore": 0.4}, quick=True) == ["blocked", "restore"]


def test_contenders_take_turns():
    order: list[str] = []

    def contender(name: str) -> Any:
        def measure() -> Sample:
            order.append(name)
            return Sample(float(len(order)))

        return measure

    found = interleaved({name: contender(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert found["a"].wall == Spread(6.0, 1.0, 8.0)


def test_the_table_fits_into_a_hundred_columns_and_the_json_holds_everything(capsys):
    series = Series([Sample(1.25, 0.5, 10_000_000), Sample(1.5), Sample(100.0)])
    row = Row("sealed → committed", "torch.load through s3fs", series, "SeaweedFS", 10**10)
    found = {"save": Found([row], {"blocked": 9.0})}
    described = report.machine()
    report.show(found, described, quick=True)
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert "SeaweedFS 1500 (1250-100000)" in shown
    assert "…" not in shown
    assert "failed" in shown
    written = report.to_json(found, described, quick=True)
    assert written["rows"][0]["wall_s"] == {"median": 1.5, "least": 1.25, "greatest": 100.0}
    assert {target["name"]: target["verdict"] for target in written["targets"]}["blocked"] == "failed"
    assert written["machine"]["cores"] >= 1
