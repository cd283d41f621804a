"""A restart on the same machine reads from the spool what still lies there, and from the bucket what does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxy import Proxy
from tests.support.servers import S3Env, wait_until
from tests.training.machine import Bucket, Machine, Trainer, machine


@pytest.fixture
def here(s3_env: S3Env) -> Iterator[Machine]:
    with machine(s3_env.environment) as found:
        yield found


@pytest.fixture
def bucket(s3_env: S3Env) -> Bucket:
    return Bucket(s3_env.uri)


def start_service(here: Machine) -> None:
    """An agent that outlives the trainings."""
    command = [sys.executable, "-m", "spotckpt.agent", "--reserve-mb=0", f"--disk-dir={here.folder / 'disk'}"]
    with (here.folder / "agent.log").open("wb") as log:
        subprocess.Popen(
            command, env=here.environment, stderr=log
        ).returncode = 0  # ended, and reaped, with the machine
    here.agent_pid()


def killed(here: Machine, bucket: Bucket, *options: str) -> Trainer:
    """A training that was killed at step 4, all of whose snapshots so far are committed."""
    trainer = here.start(bucket.uri, "--at=4", "--act=spin", *options)
    trainer.wait_for("spinning")
    wait_until(lambda: bucket.manifests() and bucket.manifests()[-1]["step"] == 4, what="the snapshot of step 4")
    trainer.signal(signal.SIGKILL)
    trainer.wait()
    return trainer


def kept(here: Machine) -> list[Path]:
    return list(here.spool.glob("*/slot-*/kept.json"))


def slot_data(here: Machine) -> Path:
    (path,) = kept(here)
    return path.with_name("data")


def tensor_reads(proxy: Proxy) -> list[str]:
    return [seen.path for seen in proxy.seen if seen.method == "GET" and "rank-00000.safetensors" in seen.path]


def test_no_byte_of_a_pack_is_downloaded_where_it_lies_here(
    here: Machine, bucket: Bucket, s3_env: S3Env, plain: str
) -> None:
    start_service(here)
    killed(here, bucket)
    wait_until(lambda: bucket.released(1), what="the release")
    assert len(kept(here)) == 1
    with Proxy(s3_env.url) as proxy:
        again = here.train(bucket.uri, env=s3_env.behind(proxy.url).environment)
        assert tensor_reads(proxy) == []
        assert next(seen.method for seen in proxy.seen if "rank-00000.safetensors" in seen.path) == "HEAD"
    assert again.steps[0] == 4
    assert again.end == plain
    wait_until(lambda: not list(here.spool.glob("*/slot-*")), what="that nothing is kept of a finished run")


def test_trainer_and_agent_were_killed(here: Machine, bucket: Bucket, s3_env: S3Env, plain: str) -> None:
    with Proxy(s3_env.url, bytes_per_s=20_000.0) as proxy:
        trainer = here.start(bucket.uri, "--at=4", "--act=spin", env=s3_env.behind(proxy.url).environment)
        trainer.wait_for("spinning")
        here.kill_agent()
        trainer.signal(signal.SIGKILL)
        trainer.wait()
        proxy.bytes_per_s = None
        proxy.seen.clear()
        # the next agent commits what was sealed, and gives it to the next attempt
        again = here.train(bucket.uri, env=s3_env.behind(proxy.url).environment)
        assert tensor_reads(proxy) == []
    assert again.steps[0] in (3, 4)
    assert again.end == plain


def test_a_damaged_copy_is_told_and_the_bucket_read(here: Machine, bucket: Bucket, plain: str) -> None:
    start_service(here)
    killed(here, bucket)
    wait_until(lambda: bucket.released(1), what="the release")
    path = slot_data(here)
    with path.open("r+b") as data:
        data.seek(40)
        byte = data.read(1)
        data.seek(40)
        data.write(bytes([byte[0] ^ 1]))
    again = here.train(bucket.uri)
    assert "is of no use" in again.said and "does not match its digest" in again.said
    assert "skipped" not in again.said
    assert again.steps[0] == 4
    assert again.end == plain


def test_a_copy_that_was_cut_short_is_left_for_the_bucket(here: Machine, bucket: Bucket, plain: str) -> None:
    start_service(here)
    killed(here, bucket)
    wait_until(lambda: bucket.released(1), what="the release")
    os.truncate(slot_data(here), 100)
    again = here.train(bucket.uri)
    assert again.steps[0] == 4
    assert again.end == plain


def test_an_agent_that_ends_leaves_nothing(here: Machine, bucket: Bucket) -> None:
    start_service(here)
    killed(here, bucket)
    wait_until(lambda: bucket.released(1), what="the release")
    assert kept(here)
    os.kill(here.agent_pid(), signal.SIGTERM)
    wait_until(lambda: not list(here.spool.glob("*/slot-*")), what="an empty spool")
