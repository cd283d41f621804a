"""Going on from a place of one's choice: selectors, best weights, another run's weights, changed arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import spotckpt
from tests.training.machine import Bucket, Machine

STEPS = 10


def steps_of(bucket: Bucket) -> list[int]:
    return [manifest["step"] for manifest in bucket.manifests()]


def test_a_rewind_stays_in_force_after_a_crash_and_is_followed_once(shared: Machine, bucket: Bucket) -> None:
    plain = shared.train(bucket.uri, "--every=1h", "--save-in=3").end
    rewound = shared.start(f"{bucket.uri}@step=4", "--every=1h", "--at=6", "--act=hold")
    rewound.wait_for("holding")
    assert rewound.steps[0] == 4
    rewound.signal(9)
    rewound.wait()
    again = shared.train(bucket.uri, "--every=1 steps", "--at=7", "--act=exit", status=3)
    assert again.steps[0] == 4, "the rewound attempt committed nothing: its selector is still what was meant"
    last = shared.train(f"{bucket.uri}@step=4")
    assert last.steps[0] == 7, "@step=4 was followed already"
    assert last.end == plain
    assert spotckpt.load(f"{bucket.uri}@step=4").keys() == {"model", "optimizer", "extra", "vars"}, "a reader may look"


def test_afresh_is_a_new_attempt_of_the_same_run(shared: Machine, bucket: Bucket) -> None:
    shared.train(bucket.uri)
    again = shared.train(f"{bucket.uri}@start")
    assert again.steps == list(range(STEPS))
    assert bucket.attempts() == [1, 2]
    before = bucket.listing()
    assert shared.train(f"{bucket.uri}@start").steps == [], "followed already, and finished"
    assert bucket.listing() == before


def test_keep_best_snapshots_the_weights_that_were_evaluated(shared: Machine, bucket: Bucket) -> None:
    shared.train(bucket.uri, "--epochs=3", "--every=1h", "--keep-best=valid/score:max")
    kept = [(m["reason"], m["step"], m["evaluated"].get("valid/score")) for m in bucket.manifests()]
    assert kept == [("best", 5, 0.0), ("best", 10, 1.0), ("final", 15, 0.0)]
    resumed = shared.train(None, f"--resume={bucket.uri}@best=valid/score:max", "--epochs=3", "--every=1h")
    assert resumed.steps[0] == 10
    assert "resumed" in resumed.said and "(step 10, epoch 2, batch 0)" in resumed.said


def test_saving_by_hand(shared: Machine, bucket: Bucket) -> None:
    shared.train(bucket.uri, "--every=1h", "--save-in=3")
    assert [(m["reason"], m["step"]) for m in bucket.manifests()] == [("manual", 4), ("final", STEPS)]


def test_an_empty_run_starts_from_another_one_s_weights(shared: Machine, bucket: Bucket, tmp_path: Path) -> None:
    shared.train(bucket.uri)
    other = Bucket(f"file://{tmp_path}/other")
    option = f"--init-from={bucket.uri}@step=10"
    first = shared.train(other.uri, option, "--at=0", "--act=exit", status=3)
    assert "weights from" in first.said and first.steps == [0]
    again = shared.train(other.uri, option, "--epochs=1", "--every=1 steps")
    assert again.steps == list(range(5))
    assert other.manifests()[0]["environment"]["init_from"].startswith(f"{bucket.uri}@a0001-")
    losses = again.end.partition("[")[2].split(",")
    begun = shared.trainers[-3].end.partition("[")[2].split(",")
    assert losses[0] != begun[0], "trained weights"
    more = shared.train(other.uri, "--init-from=file:///nowhere/at/all", "--epochs=2")
    assert more.steps == list(range(5, 10)), "a run that has snapshots does not look there"


@pytest.fixture(scope="module")
def finished(shared: Machine, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    uri = f"file://{tmp_path_factory.mktemp('finished')}/run"
    shared.train(uri, "--every=1h")
    return Bucket(uri)


def test_load_reads_what_is_asked_for(finished: Bucket) -> None:
    before = finished.listing()
    everything = spotckpt.load(finished.uri)
    assert set(everything) == {"model", "optimizer", "extra", "vars"}
    assert set(everything["model"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    only = spotckpt.load(f"{finished.uri}@step=10", only="model")
    assert set(only) == {"model"}
    assert torch.equal(only["model"]["0.weight"], everything["model"]["0.weight"])
    assert spotckpt.load(finished.uri, only=["extra", "vars"]) == {"extra": {"value": 1}, "vars": {}}
    with pytest.raises(spotckpt.SpotckptError, match="does not hold ema"):
        spotckpt.load(finished.uri, only="ema")
    assert finished.listing() == before
