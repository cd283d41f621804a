"""A training whose old snapshots are deleted while it goes on: it comes to the same end, and leaves what it should."""

from __future__ import annotations

import signal

import pytest

from tests.support.checker import check, leftovers
from tests.support.servers import S3Env, wait_until
from tests.training.machine import Bucket, machine

OPTIONS = ("--every=1 steps", "--delay=0.1", "--frozen=50000", "--keep-best=valid/score:min")
KEEP = "--keep=last=2"


@pytest.mark.fault(62)
def test_a_pruned_training_that_is_killed_comes_to_the_same_end(s3_env: S3Env) -> None:
    with machine(s3_env.environment) as here, machine(s3_env.environment) as there:
        plain, bucket = Bucket(f"{s3_env.uri}-plain"), Bucket(s3_env.uri)
        end = there.train(plain.uri, *OPTIONS, "--every=1h").end
        first = here.start(bucket.uri, *OPTIONS, KEEP, "--at=9", "--act=hold")
        first.wait_for("holding")
        first.signal(signal.SIGKILL)
        second = here.train(bucket.uri, *OPTIONS, KEEP)
        assert "resumed" in second.said and second.steps[0] > 0
        assert second.end == end
        wait_until(lambda: not leftovers(bucket.uri) and 2 <= len(bucket.manifests()) <= 5, what="the last pruning")
        left = bucket.manifests()
        assert left[-1]["reason"] == "final" and left[0]["step"] > 1
        assert 0.0 in [one["evaluated"].get("valid/score") for one in left], "the best, of the first epoch, stays"
        check(bucket.uri, [left[-1]["snapshot"]])
