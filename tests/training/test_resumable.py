"""The decorator itself: addresses, templates, settings, messages, exit statuses. Nothing here reaches a bucket."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import spotckpt
from spotckpt.errors import AddressError, SettingError, UsageError, WorldSizeError
from spotckpt.training.arguments import bound_arguments, changed, describe
from spotckpt.training.request import make_request, make_settings


@pytest.fixture
def disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTCKPT_DISABLED", "1")


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SPOTCKPT_URI", raising=False)
    yield


def ending_of(function: object, *args: object, **kwargs: object) -> int:
    with pytest.raises(SystemExit) as ended:
        function(*args, **kwargs)  # type: ignore[operator]
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_keeps_name_and_documentation() -> None:
    @spotckpt.resumable("s3://bucket/run")
    def train(run: object, lr: float = 0.1) -> float:
        """Trains."""
        return lr

    assert (train.__name__, train.__doc__) == ("train", "Trains.")
    assert list(inspect.signature(train.__wrapped__).parameters) == ["run", "lr"]


@pytest.mark.usefixtures("disabled")
def test_works_without_parentheses_and_returns_what_the_function_returns() -> None:
    @spotckpt.resumable
    def train(run: spotckpt.Run, scale: int) -> int:
        return sum(run.steps(4)) * scale

    assert train(2) == 12
    assert train(scale=3) == 18


@pytest.mark.parametrize(
    ("at", "environment", "decorator", "used"),
    [
        ("a1://b/at", "a2://b/env", "a3://b/code", "a1"),
        (None, "a2://b/env", "a3://b/code", "a2"),
        (None, None, "a3://b/code", "a3"),
    ],
)
def test_at_wins_over_the_environment_and_that_over_the_decorator(
    at: str | None,
    environment: str | None,
    decorator: str,
    used: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if environment:
        monkeypatch.setenv("SPOTCKPT_URI", environment)

    @spotckpt.resumable(decorator)
    def train(run: object) -> None: ...

    assert ending_of(train.at(at)) == AddressError.exit_status
    assert f"{used}:// is not known" in capfd.readouterr().err


def test_without_an_address_says_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    @spotckpt.resumable
    def train(run: object) -> None: ...

    assert ending_of(train) == 10
    assert capfd.readouterr().err.splitlines() == [
        "spotckpt: error: this training has no address; give a URI to the decorator, to train.at(uri) "
        "or to SPOTCKPT_URI"
    ]


def test_template_is_filled_by_arguments_and_their_defaults() -> None:
    def train(run: object, trial: int, *, fold: str = "a") -> None: ...

    arguments = bound_arguments(train, (7,), {})
    request = make_request("s3://b/{trial}-{fold}@step=3", arguments, {})
    assert str(request.address) == "s3://b/7-a@step=3"
    with pytest.raises(AddressError, match=r"wants \{seed\}"):
        make_request("s3://b/{seed}", arguments, {})


def test_more_than_one_process_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    @spotckpt.resumable("file:///tmp/never")
    def train(run: object) -> None: ...

    assert ending_of(train) == WorldSizeError.exit_status == 50
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("spotckpt: error: WORLD_SIZE=2: ")


def test_settings_are_checked_before_anything_starts() -> None:
    settings = make_settings({"every": "500 steps", "keep_best": "valid/top1:max", "stale_after": "2min"})
    assert settings.every.steps == 500
    assert str(settings.keep_best) == "valid/top1:max"
    assert settings.stale_after_s == 120
    with pytest.raises(SettingError, match="every"):
        make_settings({"every": "soon"})
    with pytest.raises(SettingError, match="resume"):
        make_request("file:///tmp/x", {}, {"resume": "guess"})  # type: ignore[typeddict-item]


def test_unknown_options_are_refused_where_they_are_written() -> None:
    with pytest.raises(SettingError, match=r"resumable has no option 'evry'; did you mean every\?"):
        spotckpt.resumable("file:///tmp/never", evry="10min")  # type: ignore[call-overload]
    refused = pytest.raises(SettingError, match="open_run has no option 'zzz'; its options are call_timeout, every")
    with refused, spotckpt.open_run("file:///tmp/never", zzz=1):  # type: ignore[call-arg]
        raise AssertionError("never entered")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("every", None),
        ("every", True),
        ("every", ["10min"]),
        ("sigterm_grace", [1]),
        ("stale_after", "soon"),
        ("call_timeout", {}),
        ("keep_best", "top1"),
        ("keep_best", 3),
        ("metadata_endpoint", 3),
        ("takeover", "no"),
    ],
)
def test_a_value_that_is_none_of_the_options_names_it(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"^{name}="):
        make_settings({name: value})  # type: ignore[misc]


def test_a_metadata_endpoint_that_is_none_is_told_before_any_agent_fails_by_it() -> None:
    with pytest.raises(SettingError, match="'bogus' is not http://HOST:PORT"):
        make_settings({"metadata_endpoint": "bogus"})


def test_an_address_may_be_a_path_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTCKPT_DISABLED", "1")

    @spotckpt.resumable(tmp_path / "run")
    def train(run: spotckpt.Run) -> int:
        return sum(run.steps(3))

    assert train() == train.at(tmp_path / "other")() == 3
    assert repr(train).endswith(f" at {tmp_path}/run>")
    for refused in (3, b"s3://b/x"):
        with pytest.raises(UsageError, match="which is no address"):
            spotckpt.resumable(refused)  # type: ignore[call-overload]


def test_open_run_raises_instead_of_exiting() -> None:
    with pytest.raises(AddressError, match="nope:// is not known"), spotckpt.open_run("nope://b/x"):
        raise AssertionError("never entered")


def test_argument_parser_gets_an_option_and_argv_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--resume", "s3://wrong/one"])
    parser = argparse.ArgumentParser()
    spotckpt.add_arguments(parser)
    spotckpt.add_arguments(parser, option="--from-run", takeover=None)
    assert parser.parse_args([]).resume is None
    assert parser.parse_args(["--resume", "s3://b/x@step=3"]).resume == "s3://b/x@step=3"
    assert parser.parse_args(["--from-run", "s3://b/y"]).from_run == "s3://b/y"


def test_function_without_a_run_is_told_so(capfd: pytest.CaptureFixture[str]) -> None:
    @spotckpt.resumable("file:///tmp/never")  # type: ignore[arg-type]
    def train() -> None: ...

    assert ending_of(train) == 64
    assert "takes no argument" in capfd.readouterr().err


def test_wrong_arguments_are_an_ordinary_type_error() -> None:
    @spotckpt.resumable("file:///tmp/never")
    def train(run: object, lr: float) -> None: ...

    with pytest.raises(TypeError, match="lr"):
        train()  # type: ignore[call-arg]


def test_arguments_are_described_without_places_in_memory() -> None:
    described = describe({"lr": 0.1, "sizes": (1, 2), "object": object(), "nan": float("nan"), "big": 2**70})
    assert described == {"lr": 0.1, "sizes": [1, 2], "object": "<object object>", "nan": "nan", "big": str(2**70)}
    assert changed(described, describe({"lr": 0.2, "sizes": (1, 2), "object": object(), "nan": float("nan")})) == {
        "lr": (0.1, 0.2),
        "big": (str(2**70), None),
    }
