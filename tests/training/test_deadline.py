"""A notice from the metadata service, a slow line, a real training: which snapshot is there when the machine goes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.checker import check
from tests.support.imds import Imds, running_imds
from tests.support.proxy import Proxy
from tests.support.servers import S3Env, wait_until
from tests.training.machine import Bucket, Machine, machine

SLOW_BYTES_PER_S = 2e6
WIDTH = 60_000  # 2.9 MB of weights and momentum, so one and a half seconds


@pytest.fixture
def imds() -> Iterator[Imds]:
    with running_imds() as found:
        yield found


@pytest.fixture
def line(s3_env: S3Env) -> Iterator[Proxy]:
    with Proxy(s3_env.url, bytes_per_s=SLOW_BYTES_PER_S) as found:
        yield found


@pytest.fixture
def here(line: Proxy, s3_env: S3Env) -> Iterator[Machine]:
    with machine(s3_env.behind(line.url).environment) as found:
        yield found


@pytest.fixture
def bucket(s3_env: S3Env) -> Bucket:
    return Bucket(s3_env.uri)


@pytest.mark.fault(75)
def test_training_goes_on_under_a_notice_and_its_last_snapshot_is_there_in_time(
    here: Machine, bucket: Bucket, imds: Imds
) -> None:
    trainer = here.start(
        bucket.uri,
        "--every=1h",
        "--reserve=3s",
        "--epochs=1000",
        "--delay=0.1",
        f"--width={WIDTH}",
        f"--metadata-endpoint={imds.endpoint}",
    )
    trainer.wait_for("step 5")
    gone_at = time.time() + 14.0
    imds.spot("terminate", in_s=14.0)
    assert trainer.wait() == 75, trainer.said
    first, *_, last = bucket.manifests()
    assert last["committed"] < gone_at
    assert last["step"] > first["step"] and last["created"] > first["created"] + 2, "the first one was not the last one"
    assert last["step"] >= trainer.steps[-1], "what was trained after it is lost"
    assert bucket.released(1)
    assert str(check(bucket.uri, [last["snapshot"]])) == last["snapshot"]


@pytest.mark.fault(75)
def test_what_is_sealed_goes_where_no_boundary_comes(here: Machine, bucket: Bucket, imds: Imds) -> None:
    trainer = here.start(
        bucket.uri,
        "--every=1 steps",
        "--upload-every=1h",
        "--at=9",
        "--act=spin",
        f"--width={WIDTH}",
        f"--metadata-endpoint={imds.endpoint}",
    )
    trainer.wait_for("spinning")
    wait_until(bucket.manifests, what="the first periodic snapshot")
    imds.spot("terminate", in_s=20.0)
    wait_until(lambda: bucket.manifests()[-1]["step"] == 9, what="the sealed snapshot")
    assert bucket.manifests()[-1]["reason"] == "periodic"
    trainer.go()
    assert trainer.wait() in (0, 75), trainer.said
