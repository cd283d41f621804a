"""The page, as a browser without a network shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any
from urllib.parse import unquote

import pytest

from spotckpt.curves.chart import Look, Subject, make_chart
from tests.curves.made import Columns, eventful_subject, history, plain
from tests.curves.test_pictures import subjects

draw_html = pytest.importorskip("spotckpt.curves.html").draw_html
pytest.importorskip("plotly")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt-get install chromium)")

ASK = """<script>
(async () => {
  const pause = (time) => new Promise((done) => setTimeout(done, time));
  while (!document.body.dataset.drawn) await pause(20);
  const plot = document.getElementById("plot"), found = {};
  found.text = plot.textContent;
  if (!plot.data.some((one) => one.meta && one.meta.group)) return found;
  const traces = () =>
    plot.data.map(({ meta, visible, x }) => ({ meta, visible, x: Array.from(x ?? []).slice(0, 3) }));
  const hover = async (which) => {
    const curveNumber = plot.data.findIndex((one) => one.meta && one.meta[which]);
    Plotly.Fx.hover("plot", [{ curveNumber, pointNumber: 0 }], `x${plot.data[curveNumber].yaxis}`);
    await pause(200);  // the library lets some time pass between two
    return plot.querySelector(".hoverlayer").textContent;
  };
  found.width = document.documentElement.scrollWidth;
  found.view = document.documentElement.clientWidth;
  found.curves = plot.querySelectorAll(".scatterlayer .trace path.js-line").length;
  found.points = await hover("points");
  found.ends = await hover("ends");
  found.best = await hover("best");
  found.traces = traces();
  found.texts = Array.from(document.querySelectorAll("#plot text"), (one) => one.textContent);
  found.listed = Array.from(document.querySelectorAll("li"), (one) => one.textContent);
  const axis = document.getElementById("axis");
  found.axes = Array.from(axis.options, (one) => one.value);
  const button = document.querySelector("#legend button");
  button.click();
  found.hidden = [button.getAttribute("aria-pressed"), traces()];
  button.click();
  axis.value = "time"; axis.onchange();
  found.time = [plot.layout.xaxis.title.text, traces()];
  document.getElementById("log").click();
  found.log = plot.layout.yaxis.type;
  found.requests = performance.getEntriesByType("resource").map((one) => one.name);
  return found;
})().catch((error) => ({ error: String(error) })).then((found) => parent.postMessage({ name: NAME, found }, "*"));
</script></body>"""
FRAMES = """<!DOCTYPE html><body><script>
const all = {}, pages = PAGES;
onmessage = (event) => {
  all[event.data.name] = event.data.found;
  if (Object.keys(all).length === pages.length) document.body.dataset.found = encodeURIComponent(JSON.stringify(all));
};
for (const [name, width] of pages) {
  const frame = document.createElement("iframe");
  const style = "border: 0; position: absolute; top: 0; left: 0";  // out of sight it would not be drawn
  Object.assign(frame, { src: `${name}.html`, width, height: 900, style });
  document.body.append(frame);
}
</script></body>"""


def nasty() -> Subject:
    metrics = history(**{"train__loss<i>x</i>": Columns(range(3), [1, float("nan"), 0.5])})
    return plain("s3://bucket/</script><b>x", metrics)


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a browser makes of pages of several widths, by name; one start for all."""
    folder = tmp_path_factory.mktemp("pages")
    pages = [
        ("narrow", 500, [eventful_subject()]),
        ("wide", 1300, [eventful_subject()]),
        ("many", 900, [*subjects("many"), *subjects("odd"), nasty()]),
        ("none", 900, subjects("none")),
    ]
    for name, _, shown in pages:
        page = draw_html(make_chart(shown, Look())).replace("</body>", ASK.replace("NAME", json.dumps(name)))
        (folder / f"{name}.html").write_text(page)
    frames = FRAMES.replace("PAGES", json.dumps([(name, width) for name, width, _ in pages]))
    (folder / "frames.html").write_text(frames)
    command = [
        *(str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder}/profile", "--window-size=1400,900", "--virtual-time-budget=60000"),
        *("--dump-dom", f"file://{folder}/frames.html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    told = re.search(r'data-found="([^"]+)"', done.stdout)
    assert told is not None, done.stderr[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(unquote(told[1]))
    return found


@needs_browser
@pytest.mark.parametrize(("name", "width"), [("narrow", 500), ("wide", 1300)])
def test_attempts_ends_points_and_bests_are_there_and_answer(looks, name: str, width: int) -> None:
    found = looks[name]
    assert width - 20 < found["view"] <= width, "less a scroll bar"
    assert found["width"] <= found["view"], "nothing sticks out to the right"
    assert found["curves"] == 6
    assert found["points"].startswith("step 100, 1970-01-01 00:18:20 UTC: resume with s3://bucket/resnet50@step=100")
    assert found["ends"].startswith("attempt 1 ended at step 341: spot notice (terminate); attempt 2 went on from")
    assert "best train/loss 0.38052 at step 948; the snapshot before it: s3://bucket/resnet50@step=900" in found["best"]
    assert {"loss", "top1", "1", "2", "5", "6", "resnet50", "left for @step=500", "step"} <= set(found["texts"])
    assert sum("ended at step" in one for one in found["listed"]) == 5
    assert any("60 steps replayed, 60 s lost" in one for one in found["listed"])
    assert found["axes"] == ["step", "epoch", "time"]
    pressed, traces = found["hidden"]
    assert pressed == "false"
    assert {one["visible"] for one in traces if one["meta"].get("group") == "train"} == {False}
    assert {one["visible"] for one in traces if one["meta"].get("group") == "valid"} == {True}
    title, traces = found["time"]
    assert title == "minutes since the run began"
    assert traces[0]["x"] != found["traces"][0]["x"]
    assert found["log"] == "log"
    assert found["requests"] == [], "the page asks nobody for anything"


@needs_browser
def test_ten_runs_names_that_look_like_markup_and_values_that_are_no_numbers(looks) -> None:
    found = looks["many"]
    assert found["width"] <= found["view"]
    texts = set(found["texts"])
    assert {"lr-0", "lr-9", "✕", "▲", "▼"} <= texts
    assert {"train/loss", "train/loss<i>x</i>"} <= texts, "names are shown as they are"
    assert found["requests"] == []


@needs_browser
def test_a_page_without_any_number(looks) -> None:
    assert "no number was logged" in looks["none"]["text"]


def test_the_page_is_one_file_of_a_reasonable_size_whatever_was_logged() -> None:
    page = draw_html(make_chart(subjects("ten million"), Look()))
    assert len(page) < 5_500_000
    head = page.replace(pytest.importorskip("plotly.offline").get_plotlyjs(), "")
    assert not re.search(r"https?://|src=|@import|href=", head)
