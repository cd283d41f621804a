"""A trainer that waits for its uploads, and does not read how far they are."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spotckpt.deadline import SYSTEM_CLOCK, Deadline
from spotckpt.notices.notice import Notice
from tests.agent.harness import HELD_BYTES_PER_S, WAIT_S
from tests.agent.inside import Turned, agent_of, attempt, seal
from tests.support.proxy import Proxy
from tests.support.servers import S3Env, wait_until


def test_who_does_not_read_how_far_its_upload_is_keeps_no_notice_waiting(
    tmp_path: Path, s3_env: S3Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, reads = threading.Event(), threading.Event()

    def on_progress(_: object) -> None:
        stuck.set()
        reads.wait(WAIT_S)

    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy, ThreadPoolExecutor(2) as others:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        agent = agent_of(tmp_path, Turned())
        run = attempt(agent, s3_env.uri, 1, "")
        seal(run, 7, 500_000)
        draining = others.submit(run.drain, Deadline.after(WAIT_S), close="closed", on_progress=on_progress)
        assert stuck.wait(WAIT_S)
        notice = Notice("spot", "terminate", SYSTEM_CLOCK.now() + 100, "n")
        answering = others.submit(run.answer, notice)
        try:
            assert answering.result(WAIT_S / 2).plan
        finally:
            proxy.bytes_per_s = None
            reads.set()
        assert draining.result(WAIT_S)["acknowledged"]
        wait_until(lambda: agent.run_of(run.uri) is None, what="the end")
