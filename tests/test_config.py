from __future__ import annotations

from datetime import timedelta

import pytest

from spotckpt.config import Every, Keep, Settings, parse_bytes, parse_seconds, parse_speed, size_text
from spotckpt.errors import SettingError
from spotckpt.training.request import make_settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10min", 600),
        ("30s", 30),
        ("1.5 h", 5400),
        ("250ms", 0.25),
        ("90", 90),
        (7, 7),
        (0, 0),
        (timedelta(minutes=2), 120),
    ],
)
def test_durations(text, seconds):
    assert parse_seconds(text, name="every") == seconds


@pytest.mark.parametrize(
    "value", ["ten", "-1s", -1, float("nan"), float("inf"), "10 fortnights", "", timedelta(seconds=-1)]
)
def test_a_bad_duration_is_named(value):
    with pytest.raises(SettingError, match="stale_after"):
        parse_seconds(value, name="stale_after")


def test_every_is_a_time_or_a_number_of_steps():
    assert Every.parse("10min") == Every(seconds=600)
    assert Every.parse("500 steps") == Every(steps=500)
    assert Every.parse("1 step") == Every(steps=1)
    with pytest.raises(SettingError):
        Every.parse("0 steps")


def test_settings_are_checked_once():
    assert Settings().stale_after_s == 60
    with pytest.raises(SettingError, match="stale_after_s"):
        Settings(stale_after_s=0)


@pytest.mark.parametrize(
    ("text", "speed"),
    [("20MB/s", 2e7), ("1.5 MiB/s", 1.5 * 2**20), ("300B/s", 300.0), ("64 kB/s", 64e3), (5_000_000, 5e6)],
)
def test_speeds_are_read(text, speed):
    assert parse_speed(text, name="upload_limit") == speed


@pytest.mark.parametrize(
    "value", ["20", "20MB", "fast", "0B/s", 0, -1, float("inf"), float("nan"), True, None, "20mb/s"]
)
def test_what_is_no_speed_is_refused(value):
    with pytest.raises(SettingError, match="upload_limit"):
        parse_speed(value, name="upload_limit")


def test_uploads_and_overlap_are_checked() -> None:
    assert make_settings({}).upload_every_s == 0.0
    assert make_settings({}).overlap is None
    given = make_settings({"upload_every": "30min", "overlap": True})
    assert (given.upload_every_s, given.overlap) == (1800.0, True)
    for options in ({"upload_every": "often"}, {"upload_every": "100 steps"}, {"overlap": "yes"}):
        with pytest.raises(SettingError, match=next(iter(options))):
            make_settings(options)  # type: ignore[typeddict-item]


def test_what_is_kept_is_one_text_that_travels():
    keep = make_settings({"keep": " last=5,every=1000 steps, every=6h,best=valid/top1:max:3"}).keep
    assert str(keep) == "last=5, every=1000 steps, every=6h, best=valid/top1:max:3"
    assert Keep.parse(str(keep)) == keep
    assert make_settings({}).keep is None
    with pytest.raises(SettingError, match="keep="):
        make_settings({"keep": 5})


@pytest.mark.parametrize("seconds", [0.25, 90, 3600, 86400, 1234567.125])
def test_a_stretch_of_time_survives_being_written(seconds):
    assert Every.parse(str(Every(seconds=seconds))) == Every(seconds=seconds)


def test_what_keep_best_took_is_kept():
    keep = make_settings({"keep": "last=2", "keep_best": "valid/top1:max"}).keep
    assert str(keep) == "last=2, best=valid/top1:max:1"
    more = make_settings({"keep": "last=2, best=valid/top1:max:4", "keep_best": "valid/top1:max"}).keep
    assert str(more) == "last=2, best=valid/top1:max:4"
    assert make_settings({"keep_best": "valid/top1:max"}).keep is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(1, "1 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_960, "1.0 MB"), (10**10, "10.0 GB")],
)
def test_sizes_are_written_in_powers_of_ten(size, text):
    assert size_text(size) == text
    assert parse_bytes(text, name="size") == pytest.approx(size, rel=1e-3)
