"""`spotckpt diff`: what it finds in two snapshots, what it downloads for that, and its exit status."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.differences import Differences, _compare_metrics
from spotckpt.snapshot.save import commit, upload
from spotckpt.snapshot.tree import encode
from spotckpt.store.open import open_store
from tests.cli.command import in_process, on_terminal
from tests.cli.test_bad_input import fails
from tests.snapshot.bucket import begin, sid, staged
from tests.support.proxy import Proxy
from tests.training.test_load_bytes import asked_for


def make(uri: str, tensors: dict[str, np.ndarray], values: Any = None, **facts: Any) -> str:
    """A run of one snapshot."""
    with closing(open_store(uri)) as store:
        begin(store, 1)
        made, data = staged(sid(1, 0, 7), tensors, **facts)
        made.tree["run"] = {"vars": encode(values)}
        commit(store, upload(store, made, data, run_id=ensure_run(store).run_id, parent=None)[0])
    return uri


def compared(a: str, b: str) -> dict[str, Any]:
    done = in_process("diff", a, b, "--json")
    found = json.loads(done.out)
    assert (done.status, done.err) == (0 if found["identical"] else 1, "")
    return found


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}"


BASE = {"w": np.arange(6, dtype="<f4").reshape(2, 3), "n": np.array(3, "<i8"), "z": np.zeros(4, "<f8")}


def test_equal_states_are_bit_identical_whatever_describes_them(root):
    a = make(f"{root}/a", BASE, {"x": [1, math.nan]}, arguments={"lr": 0.1})
    b = make(f"{root}/b", BASE, {"x": [1, math.nan]}, arguments={"lr": 0.2})
    found = compared(a, b)
    assert found["identical"] and found["read_bytes"] == 0
    assert found["arguments"] == {"lr": {"a": 0.1, "b": 0.2}}
    said = in_process("diff", a, b).out
    assert "bit-identical: 3 tensors, " in said and "lr" in said


def test_every_kind_of_difference_is_listed(root):
    other = {
        "w": BASE["w"] + np.array([[0, 0, 0.5], [0, 0, 0]], "<f4"),
        "n": np.array([3], "<i8"),
        "z": -BASE["z"],
        "new": np.zeros(2, "|b1"),
    }
    a = make(f"{root}/a", BASE, {"same": 1, "kind": 1, "gone": None})
    b = make(f"{root}/b", other, {"same": 1, "kind": 1.0, "x": [{}]}, environment={"torch": "3"})
    found = compared(a, b)
    tensors = {one["name"]: one for one in found["tensors"]}
    assert tensors.keys() == {"w", "n", "z", "new"}
    assert (tensors["w"]["differing"], tensors["w"]["elements"], tensors["w"]["largest"]) == (1, 6, 0.5)
    assert (tensors["n"]["a"], tensors["n"]["b"], tensors["n"]["largest"]) == (["I64", []], ["I64", [1]], None)
    assert (tensors["z"]["differing"], tensors["z"]["largest"]) == (0, 0.0), "-0.0 has other bits"
    assert tensors["new"]["a"] is None
    assert {name.removeprefix("run.vars."): json.dumps(sides) for name, sides in found["values"].items()} == {
        "kind": '{"a": 1, "b": 1.0}',
        "gone": '{"a": null}',
        "x.length": '{"b": 1}',
    }
    assert found["environment"] == {"torch": {"b": "3"}}
    shown = on_terminal("diff", a, b, columns=80)
    assert shown.status == 1
    for words in ("bits only", "1 of 6", "they differ: 4 of 4 tensors", "scalar → 1"):
        assert words in shown.out, words
    assert all(
        len(line) <= 80
        for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|.*comparing.*", "", shown.out).splitlines()
        if "file://" not in line
    )


class Points:
    """A series, as far as numbers are read from it."""

    is_scalar = True

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self.points = points

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        steps = [step for step, _ in self.points]
        values = [value for _, value in self.points]
        return np.array(steps, np.int64), np.zeros(len(steps), np.int64), np.array(values, np.float64)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([(0, 1.0), (1, math.nan)], [(0, 1.0), (1, math.nan)], None),
        ([(0, 1.0), (1, 2.0), (2, 3.0)], [(0, 1.0), (1, 2.25)], ((3, 2), 1, 1, 0.25)),
        ([(0, 1.0)], [], ((1, 0), 0, 0, None)),
        ([], [], None),
        ([(5, 1.0), (9, 2.0)], [(5, 1.0), (7, 2.0), (9, 2.0)], ((2, 3), 7, 0, None)),
        ([(5, 0.0)], [(5, -0.0)], ((1, 1), 5, 1, 0.0)),
    ],
)
def test_metrics(a, b, expected):
    found = Differences()
    _compare_metrics(*({"train": {"loss": Points(points)}} for points in (a, b)), found)
    assert found.num_metrics == 1
    assert [astuple(one)[1:] for one in found.metrics] == ([] if expected is None else [expected])


def test_nan_is_told_and_comes_first(root):
    a = make(f"{root}/a", {"v": np.zeros(3, "<f4"), "w": np.zeros(3, "<f4")})
    b = make(f"{root}/b", {"v": np.full(3, 9, "<f4"), "w": np.array([0, math.nan, 0], "<f4")})
    assert [one["largest"] for one in compared(a, b)["tensors"]] == [9.0, "nan"]
    lines = in_process("diff", a, b).out.splitlines()
    assert [line.split()[0] for line in lines if " F32 " in line] == ["w", "v"]


def test_only_what_differs_is_downloaded(s3_env, monkeypatch):
    big = np.zeros(300_000, "<f4")
    a = make(s3_env.uri, {"big": big, "w": np.zeros(100, "<f4")})
    b = make(f"{s3_env.uri}-b", {"big": big, "w": np.ones(100, "<f4")})
    with Proxy(s3_env.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        assert compared(a, b)["read_bytes"] == asked_for(proxy) == 800


def test_what_cannot_be_compared(root):
    a = make(f"{root}/a", BASE)
    assert "no run here" in fails(21, "diff", a, f"{root}/none")
    assert "@step=8 matches nothing" in fails(33, "diff", a, f"{a}@step=8")
