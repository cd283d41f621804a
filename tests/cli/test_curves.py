"""`curve` and `history` on a run that was really trained, interrupted and resumed; nothing but metrics is read."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from spotckpt.cli.files import whole_file
from spotckpt.errors import UsageError
from spotckpt.snapshot.keys import heartbeat_key
from spotckpt.snapshot.records import Heartbeat
from spotckpt.store.open import open_store
from tests.cli.command import in_process, on_terminal, spotckpt
from tests.cli.runs import begin
from tests.training.machine import machine


@dataclass
class Trained:
    uri: str
    losses: list[float]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Twenty steps, stopped by SIGTERM after the seventh. It diverges, and ends with losses that are NaN."""
    uri = f"file://{tmp_path_factory.mktemp('trained')}/run"
    with machine() as here:
        first = here.start(uri, "--every=2 steps", "--at=6", "--act=spin", "--sigterm-grace=100s")
        first.wait_for("spinning")
        first.signal(signal.SIGTERM)
        first.wait_to_say("SIGTERM")
        first.go()
        assert first.wait() == 75
        end = here.train(uri, "--every=2 steps", "--epochs=4").end
    yield Trained(uri, json.loads(end[end.index("[") :].replace("nan", "NaN")))


def same(values: list[float], others: list[float]) -> bool:
    return list(map(repr, values)) == list(map(repr, others))


def ok(*arguments: str) -> str:
    done = in_process(*arguments)
    assert (done.status, done.err) == (0, ""), done.err
    return done.out


def test_the_terminal_shows_the_interruption_and_every_attempt(trained: Trained) -> None:
    lines = ok("curve", trained.uri, "--width", "70").splitlines()
    assert lines[0] == trained.uri[:70]
    assert max(map(len, lines)) <= 70
    assert "▼ step 7: SIGTERM, nothing lost" in lines
    assert any(line.startswith("● train  ★") for line in lines)
    assert any(line.startswith("○ valid") for line in lines)


def test_what_is_known_of_a_run_as_json(trained: Trained) -> None:
    [shown] = json.loads(ok("curve", trained.uri, "--json"))
    [line] = shown["lines"]
    assert [(one["attempt"], one["first"], one["last"]) for one in line["stretches"]] == [(1, 0, 7), (2, 7, 20)]
    [end] = line["interruptions"]
    assert (end["attempt"], end["step"], end["cause"], end["resumed_by"]) == (1, 7, "SIGTERM", 2)
    selectors = [point["selector"] for point in line["points"]]
    assert {"step=7", "step=20"} <= set(selectors) and selectors == [f"step={one['step']}" for one in line["points"]]
    assert line["metrics"] == {"train/loss": 20, "valid/score": 4}


def test_a_pipe_and_a_terminal_that_cannot_show_more_than_ascii(trained: Trained, tmp_path: Path) -> None:
    plain = spotckpt("curve", trained.uri, LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert (plain.status, plain.err) == (0, "")
    assert plain.out.isascii() and "v step 7: SIGTERM, nothing lost" in plain.out
    shutil.copytree(trained.uri.removeprefix("file://"), tmp_path / "läufe")
    named = spotckpt("curve", f"file://{tmp_path}/läufe", PYTHONIOENCODING="ascii")
    assert named.status == 0 and "l?ufe" in named.out and named.err == ""
    narrow = on_terminal("curve", trained.uri, "--metric", "loss", columns=40)
    assert (narrow.status == 0 and "⣀" in narrow.out) or any("\u2800" < sign <= "\u28ff" for sign in narrow.out)


def test_pictures_and_pages(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    png, page = tmp_path / "curves.png", tmp_path / "curves.html"
    said = ok("curve", trained.uri, f"{trained.uri}@step=7", "--png", str(png), "--html", str(page), "--axis", "epoch")
    assert said.splitlines() == [f"{png}: 2 panels", f"{page}: 2 panels"]
    assert png.read_bytes().startswith(b"\x89PNG") and b"plotly" in page.read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["curves.html", "curves.png"]
    for_programs = in_process("curve", trained.uri, "--png", str(png), "--json")
    assert json.loads(for_programs.out)[0]["uri"] == trained.uri
    assert for_programs.err == f"spotckpt: {png}: 2 panels\n"
    ok("curve", trained.uri, f"{trained.uri}@step=7", "--png", str(png), "--axis", "epoch")
    again = tmp_path / "again.png"
    ok("curve", trained.uri, f"{trained.uri}@step=7", "--png", str(again), "--axis", "epoch")
    assert again.read_bytes() == png.read_bytes(), "the same picture has the same bytes"


@pytest.mark.parametrize("left", ["an agent that told nothing", "an agent that died before the release"])
def test_a_finished_run_is_shown_as_finished_whatever_its_agent_told_last(left: str, trained: Trained, tmp_path: Path):
    """The manifest of its last snapshot knows. All is drawn as of a run whose agent told that it finished."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")

    def drawn(beat: Heartbeat) -> list[bytes]:
        path.write_bytes(beat.to_bytes())
        os.utime(path, (1e9, 1e9))  # by the clock of the store it is long ago
        text = ok("curve", uri) + ok("curve", uri, "--json")
        ok("curve", uri, "--png", str(tmp_path / "a.png"), "--html", str(tmp_path / "a.html"))
        return [text.encode(), (tmp_path / "a.png").read_bytes(), (tmp_path / "a.html").read_bytes()]

    shutil.copytree(trained.uri.removeprefix("file://"), tmp_path / "run")
    uri, key = f"file://{tmp_path}/run", heartbeat_key(2)
    path = tmp_path / "run" / key
    told = replace(Heartbeat.from_bytes(path.read_bytes(), key=key), time=1e9)
    assert told.ended == "finished"
    silent = replace(told, ended="", released=left == "an agent that told nothing")
    assert drawn(silent) == drawn(told)


def test_what_cannot_be_drawn_is_one_line(trained: Trained, tmp_path: Path) -> None:
    for arguments, status, words in (
        (("curve", trained.uri, "-m", "valid/top1"), 64, "no metric is called valid/top1; there are train/loss"),
        (("curve", trained.uri, "--png", f"{tmp_path}/no/such.png"), 64, "no is no directory; create it first"),
        (("curve", f"file://{tmp_path}/nothing"), 21, "there is no run here"),
        (("history", trained.uri, "-m", "x"), 64, "no metric is called */x"),
    ):
        done = in_process(*arguments)
        assert (done.status, done.out) == (status, "")
        assert done.err.startswith("spotckpt: error: ") and words in done.err and done.err.count("\n") == 1
    with closing(open_store(f"file://{tmp_path}/begun")) as store:
        begin(store, 1)
    assert in_process("curve", f"file://{tmp_path}/begun").status == 33


def test_nothing_but_metrics_is_read(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained.uri.removeprefix("file://"), copy)
    gone = [path.unlink() for path in copy.glob("packs/*/rank-*")]
    assert gone, "tensors and tables of state"
    assert ok("history", str(copy)) == ok("history", trained.uri)
    assert "▼ step 7: SIGTERM, nothing lost" in ok("curve", str(copy))


def test_csv_is_exact(trained: Trained) -> None:
    text = ok("history", trained.uri)
    rows = list(csv.DictReader(io.StringIO(text)))
    losses = [row for row in rows if (row["set"], row["name"]) == ("train", "loss")]
    assert math.isnan(trained.losses[-1])
    assert same([float(row["value"]) for row in losses], trained.losses)
    assert [int(row["step"]) for row in losses] == list(range(20))
    assert [int(row["epoch"]) for row in losses] == [step // 5 for step in range(20)]
    assert [row["value"] for row in rows if row["name"] == "score"] == ["0.0", "1.0", "0.0", "1.0"]
    up_to = list(csv.DictReader(io.StringIO(ok("history", f"{trained.uri}@step=7", "-m", "train/*"))))
    assert [float(row["value"]) for row in up_to] == trained.losses[:7]


def test_json_lines(trained: Trained) -> None:
    rows = [json.loads(line) for line in ok("history", trained.uri, "--format", "jsonl").splitlines()]
    assert rows[0] == {"set": "train", "name": "loss", "step": 0, "epoch": 0, "value": trained.losses[0]}
    assert len(rows) == 24


def test_parquet(trained: Trained, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "history.parquet"
    assert ok("history", trained.uri, "--format", "parquet", "-o", str(path)) == f"{path}: parquet\n"
    columns = parquet.read_table(path).to_pydict()
    assert list(columns) == ["set", "name", "step", "epoch", "value", "json"]
    assert same(columns["value"][:20], trained.losses) and columns["json"] == [None] * 24
    refused = on_terminal("history", trained.uri, "--format", "parquet")
    assert refused.status == 64 and "-o FILE" in refused.out


def test_tensorboard_reads_its_events(trained: Trained, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):
        assert "tensorboard --logdir" in ok("history", trained.uri, "--tensorboard", str(tmp_path / "tb"))
    assert len(list((tmp_path / "tb").iterdir())) == 1, "again replaces"
    rows = tmp_path / "rows.csv"
    assert "tensorboard" in ok("history", trained.uri, "--tensorboard", str(tmp_path / "tb"), "-o", str(rows))
    assert rows.read_text() == ok("history", trained.uri)
    found = accumulator.EventAccumulator(str(tmp_path / "tb"), size_guidance={accumulator.SCALARS: 0})
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == ["train/loss", "valid/score"]
    scalars = found.Scalars("train/loss")
    assert [one.step for one in scalars] == list(range(20))
    assert [one.value for one in scalars] == pytest.approx(trained.losses, rel=1e-6, nan_ok=True)
    times = [one.wall_time for one in scalars]
    assert times == sorted(times) and 0 < times[-1] - times[0] < 600 and times[0] > 1.7e9


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError), whole_file(tmp_path / "no" / "such"):
        pass
    with whole_file(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is no file"), whole_file(tmp_path / "pipe"):
        pass
    (tmp_path / "link").symlink_to(path)
    with whole_file(tmp_path / "link") as file:
        file.write(b"through")
    assert path.read_bytes() == b"through" and (tmp_path / "link").is_symlink() and (tmp_path / "pipe").is_fifo()


def test_nobody_reads_to_the_end(trained: Trained) -> None:
    import subprocess
    import sys

    command = f"set -o pipefail; {sys.executable} -m spotckpt history {trained.uri} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "set,name,step,epoch,value\n" and done.stderr == ""
