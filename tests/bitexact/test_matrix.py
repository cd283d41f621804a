"""Every case: trained on a machine that is taken away at least three times, it ends as if nothing had happened."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from tests.bitexact.bucket import Files, S3Objects
from tests.bitexact.cases import CASES
from tests.bitexact.harness import Options, Trial
from tests.bitexact.outcome import Dump, differences
from tests.support.servers import S3Env

OPTIONS = {
    "plateau": Options(every="0s"),
    "two_optimizers": Options(every="2 steps"),
    "steps": Options(open_run=True),
    "ema": Options(open_run=True),
}


def assert_same(plain: Dump, spot: Dump) -> None:
    """Byte for byte; the message starts with the loss curve's first difference."""
    found = differences(plain, spot)
    assert not found, f"{len(found)} differences: " + "\n".join(found[:20])


def a_trial(case: str, folder: Path, options: Options | None = None) -> Trial:
    """On local files, with a seed of the case's own."""
    return Trial(case, Files(folder / "bucket" / "run"), folder, seed=zlib.crc32(case.encode()), options=options)


@pytest.mark.parametrize("case", [name for name in CASES if name != "accumulation"])
def test_ends_as_the_plain_training(case: str, tmp_path: Path) -> None:
    trial = a_trial(case, tmp_path, OPTIONS.get(case))
    plain = trial.train_plainly()
    assert_same(plain, trial.train_on_spot(kills=3))


@pytest.mark.parametrize("case", ["adamw_fused", "two_optimizers", "batchnorm"])
def test_ends_as_the_plain_training_when_copied_while_it_goes_on(case: str, tmp_path: Path) -> None:
    trial = a_trial(case, tmp_path, Options(overlap=True))
    plain = trial.train_plainly()
    spot = trial.train_on_spot(kills=3)
    assert_same(plain, spot)
    logs = [path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.name in ("stderr", "log")]
    assert not [log for log in logs if "dropped: something else" in log]


@pytest.mark.parametrize("case", ["adamw_fused", "worker_augmentation"])
def test_ends_as_the_plain_training_from_s3(case: str, tmp_path: Path, s3_env: S3Env) -> None:
    trial = Trial(case, S3Objects(s3_env), tmp_path, seed=3, options=Options(delay_s=0.04, every="0s"))
    plain = trial.train_plainly()
    assert_same(plain, trial.train_on_spot(kills=3))


def test_accumulation_ends_as_the_plain_training_when_killed_at_eight_consecutive_batches(tmp_path: Path) -> None:
    # Each life trains one batch, holds in the next one's backward until the first is committed, and is killed there:
    # resumed at every place in a window of four, twice, and at the end of an epoch of ten.
    trial = a_trial("accumulation", tmp_path, Options(delay_s=0.01))
    plain = trial.train_plainly()
    life = trial.start(SPOT_TEST_HOLD="3")
    for step in range(3, 11):
        trial.wait_for_commit(life, step)
        life = trial.replace(life, SPOT_TEST_HOLD=str(step + 1) if step < 10 else "-1")
        assert life.trace is not None and life.trace["step"] == step
    assert_same(plain, trial.finish(life))


@pytest.mark.parametrize("case", ["plateau", "stateful_loader", "worker_augmentation"])
def test_ends_as_the_plain_training_when_killed_at_the_end_of_two_epochs(case: str, tmp_path: Path) -> None:
    trial = a_trial(case, tmp_path, Options(delay_s=0.01))
    plain = trial.train_plainly()
    life = trial.start(SPOT_TEST_HOLD="12")
    for step in (12, 24):
        trial.wait_for_commit(life, step)
        life = trial.replace(life, SPOT_TEST_HOLD=str(step + 12) if step == 12 else "-1")
        assert life.trace is not None and life.trace["step"] == step
    assert_same(plain, trial.finish(life))


def test_a_kill_before_the_first_commit_starts_afresh(tmp_path: Path) -> None:
    trial = a_trial("dropout", tmp_path, Options(every="1h", delay_s=0))
    plain = trial.train_plainly()
    life = trial.start(SPOT_TEST_HOLD="5")
    life.wait_for(lambda: life.trace is not None, "first batch")
    life = trial.replace(life, SPOT_TEST_SEED="7")
    assert life.trace is not None and life.trace["resumed_from"] is None
    assert_same(plain, trial.finish(life))


def test_a_finished_training_started_again_ends_the_same_and_writes_nothing(tmp_path: Path) -> None:
    trial = a_trial("batchnorm", tmp_path, Options(delay_s=0))
    plain = trial.train_plainly()
    assert_same(plain, trial.finish(trial.start()))
    before = trial.bucket.keys()
    again = trial.start()
    assert_same(plain, trial.finish(again))
    assert again.trace is None
    assert trial.bucket.keys() == before
