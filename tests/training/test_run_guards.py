"""What a run says, and refuses, when it does not go as its program meant it. One process, with an agent of its own."""

from __future__ import annotations

import pytest
import torch

import spotckpt
from spotckpt.errors import MismatchError, UsageError
from tests.training.machine import Bucket

pytestmark = pytest.mark.usefixtures("on_shared")


class Boom(Exception):
    """What ends a training here."""


def train(
    uri: str, num_steps: int = 4, *, fail: bool = False, arguments: dict[str, object] | None = None, **track: object
) -> list[int]:
    """Snapshots at every step; returns the steps whose bodies ran."""
    model = torch.nn.Linear(2, 1)
    steps = []
    with spotckpt.open_run(uri, every="1 steps", arguments=arguments or {}) as run:
        run.track(model=model, **track)  # type: ignore[arg-type]
        for step in run.steps(num_steps):
            steps.append(step)
            if fail and step == num_steps - 1:
                raise Boom
    return steps


def broken_off(bucket: Bucket, num_steps: int = 4) -> None:
    """A run that ended by an exception after three steps."""
    with pytest.raises(Boom):
        train(bucket.uri, num_steps, fail=True)


@pytest.mark.parametrize("how", ["returning", "finish"])
def test_no_final_snapshot_without_what_the_last_one_holds(bucket: Bucket, how: str) -> None:
    broken_off(bucket)
    before = [manifest["snapshot"] for manifest in bucket.manifests()]
    refused = pytest.raises(MismatchError, match="holds model, which the run does not track")
    with refused, spotckpt.open_run(bucket.uri) as run:
        if how == "finish":
            run.finish()
    assert [manifest["snapshot"] for manifest in bucket.manifests()] == before
    assert bucket.released(2)
    assert train(bucket.uri) == [3]


def test_a_snapshot_without_objects_is_no_reason_to_call_the_model_new(bucket: Bucket) -> None:
    with pytest.raises(Boom), spotckpt.open_run(bucket.uri, every="1 steps") as run:
        for step in run.steps(3):
            if step == 2:
                raise Boom
    with pytest.raises(MismatchError, match="holds no objects at all") as refused:
        train(bucket.uri)
    assert "optional" not in str(refused.value)


def test_a_selector_that_was_followed_already_is_said_to_be(bucket: Bucket, capfd: pytest.CaptureFixture[str]) -> None:
    def train_on(selector: str, num_steps: int) -> str:
        capfd.readouterr()
        with pytest.raises(Boom):
            train(f"{bucket.uri}{selector}", num_steps, fail=True)
        return capfd.readouterr().err

    broken_off(bucket, 3)
    ident = bucket.manifests()[-1]["snapshot"]
    broken_off(bucket, 5)
    for selector, other in (("@step=2", "full id"), (f"@{ident}", "@step=2"), ("@step<=2", "full id")):
        said = train_on(selector, 5)
        assert f"from {ident}" in said and "already" not in said
        said = train_on(selector, 6)
        assert f"from {ident}" not in said
        line = said.splitlines()[1]
        assert f"{selector} was followed by an earlier attempt already: going on from there; to go back again" in line
        assert other in line.partition("again")[2]


def test_arguments_that_changed_came_or_went_are_said(bucket: Bucket, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Boom):
        train(bucket.uri, 3, fail=True, arguments={"lr": 0.01, "gone": None, "same": 1})
    assert "argument lr" not in capfd.readouterr().err
    train(bucket.uri, 4, arguments={"lr": 0.5, "same": 1, "wd": 0.1})
    assert capfd.readouterr().err.splitlines()[1:5] == [
        "spotckpt: argument gone is gone (was None)",
        "spotckpt: argument lr changed: 0.01 → 0.5",
        "spotckpt: argument wd is new: 0.1",
        'spotckpt: restored state keeps its values: track(..., override={"optimizer": ["lr"]}) takes yours',
    ]
    train(bucket.uri, 4, arguments={"same": 1})
    assert "restored state keeps" not in capfd.readouterr().err


def test_what_a_finished_run_lacks_is_said(bucket: Bucket, capfd: pytest.CaptureFixture[str]) -> None:
    with spotckpt.open_run(bucket.uri, keep_best="valid/top1:max") as run:
        for _ in run.steps(2):
            run.log("train", loss=1.0)
    said = capfd.readouterr().err
    assert said.count("nothing was tracked") == 1
    assert "keep_best='valid/top1:max', and valid/top1 was never logged; what was logged is train/loss" in said
    train(f"{bucket.uri}-2")
    assert "warning" not in capfd.readouterr().err


def test_ctrl_c_says_what_is_committed(bucket: Bucket, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> str:
        with pytest.raises(KeyboardInterrupt), spotckpt.open_run(bucket.uri) as run:
            run.track(model=torch.nn.Linear(2, 1))
            raise KeyboardInterrupt
        lines = [line for line in capfd.readouterr().err.splitlines() if "interrupted by Ctrl-C" in line]
        assert len(lines) == 1
        return lines[0].rpartition(" ")[2]

    assert interrupt() == "none"
    broken_off(bucket)
    assert interrupt() == bucket.manifests()[-1]["snapshot"]


def adam(width: int) -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.zeros(width))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer


def test_an_optimizer_that_does_not_fit_can_be_started_anew(bucket: Bucket, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Boom):
        train(bucket.uri, 3, fail=True, optimizer=adam(3))
    with pytest.raises(MismatchError, match="shape") as refused:
        train(bucket.uri, 4, optimizer=adam(5))
    assert "drop=['optimizer'], optional=['optimizer']" in str(refused.value)
    other = adam(5)
    assert train(bucket.uri, 4, optimizer=other, drop=["optimizer"], optional=["optimizer"]) == [2, 3]
    ((_, state),) = other.state.items()
    assert state["exp_avg"].shape == (5,) and state["step"] == 1
    assert "warning: optimizer starts anew" in capfd.readouterr().err


def test_an_object_under_another_name_is_told_its_old_one(bucket: Bucket) -> None:
    with pytest.raises(Boom):
        train(bucket.uri, 3, fail=True, optimizer=adam(3), settings={"a": 1})
    with pytest.raises(MismatchError, match=r"if optimizer was renamed, track it as optimizer=\.\.\.; if it is new"):
        train(bucket.uri, 4, optim=adam(3))
    with pytest.raises(MismatchError, match="holds model, optimizer, settings; if it is new"):
        train(bucket.uri, 4, optimizer=adam(3), generator=torch.Generator())
    with pytest.raises(UsageError, match="an int cannot be changed in place"):
        train(bucket.uri, 4, count=3)


def test_a_run_that_cannot_be_made_holds_no_attempt(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise Boom

    monkeypatch.setattr("spotckpt.training.endings.Run", fail)
    with pytest.raises(Boom), spotckpt.open_run(bucket.uri):
        pass
    assert bucket.released(1)
