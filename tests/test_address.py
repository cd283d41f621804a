from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.address import NEWEST, Address, Metric, Selector, fill_template
from spotckpt.errors import AddressError


@pytest.mark.parametrize(
    ("text", "uri", "selector"),
    [
        ("s3://b/run", "s3://b/run", NEWEST),
        ("s3://b/run/", "s3://b/run", NEWEST),
        ("s3://b/run@newest", "s3://b/run", NEWEST),
        ("s3://b/run@step=1200", "s3://b/run", Selector("step", step=1200)),
        ("s3://b/run@step<=7", "s3://b/run", Selector("step_at_most", step=7)),
        ("s3://b/run@start", "s3://b/run", Selector("start")),
        ("s3://b/r@best=valid/top1:max", "s3://b/r", Selector("best", metric=Metric("valid", "top1", "max"))),
        (
            "s3://b/r@a0003-n000012-s00001200-0123abcd",
            "s3://b/r",
            Selector("id", snapshot="a0003-n000012-s00001200-0123abcd"),
        ),
        ("s3://b/me@home/run", "s3://b/me@home/run", NEWEST),
        ("/tmp/run", "file:///tmp/run", NEWEST),
        ("/tmp/./run/", "file:///tmp/run", NEWEST),
        ("file:///tmp/run@start", "file:///tmp/run", Selector("start")),
        ("memory://x", "memory://x", NEWEST),
    ],
)
def test_reads_what_people_write(text, uri, selector):
    address = Address.parse(text)
    assert (address.uri, address.selector) == (uri, selector)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["runs/run", "./runs/run", "runs//run/", "file://runs/run"])
def test_a_local_path_becomes_absolute(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Address.parse(f"{text}@step=7").uri == f"file://{tmp_path}/runs/run"


def test_a_directory_that_is_gone_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(AddressError, match="'run' is relative to a directory that is gone"):
        Address.parse("run")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../run",
        "file://a/../run",
        "s3://",
        "s3://bucket",
        "s3://b//run",
        "s3://b/../run",
        "s3://b/run@",
        "s3://b/run@latest",
        "s3://b/run@step=",
        "s3://b/run@step=-1",
        "s3://b/run@step=1e3",
        "s3://b/run@best=top1",
        "s3://b/run@best=valid/top1:best",
        "s3://b/run@a0003-n12",
        "s3://b/run\x00",
        "s3:/b/run",
        "s3://my bucket/run",
        "file:/tmp/run",
        "S3://b/run",
        "s3://b/run@@step=7",
        "s3://b/run @step=7",
    ],
)
def test_refuses_the_rest_and_says_what_to_write(text):
    with pytest.raises(AddressError) as found:
        Address.parse(text)
    assert found.value.hint


@given(st.integers(0, 10**17), st.sampled_from(["step", "step_at_most"]))
def test_step_selectors_survive_being_written(step, kind):
    selector = Selector(kind, step=step)
    assert Selector.parse(str(selector)) == selector


def test_fills_templates_from_arguments():
    assert fill_template("s3://b/{trial}/x-{lr}", {"trial": 7, "lr": 0.1}) == "s3://b/7/x-0.1"
    assert fill_template("s3://b/plain", {}) == "s3://b/plain"


@pytest.mark.parametrize("value", ["", "a/b"])
def test_a_template_value_may_not_change_the_path(value):
    with pytest.raises(AddressError, match="trial"):
        fill_template("s3://b/{trial}", {"trial": value})


def test_a_template_names_the_argument_that_is_missing():
    with pytest.raises(AddressError, match=r"\{trial\}.*lr"):
        fill_template("s3://b/{trial}", {"lr": 1})
