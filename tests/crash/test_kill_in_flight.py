"""A process killed while its commit is on the wire, at a real S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spotckpt.store.open import open_store
from tests.crash.world import RAW, World, recover
from tests.support import checker
from tests.support.proxy import Action, Proxy, cut_request, drop_reply, stall, stall_reply, then
from tests.support.servers import S3Env

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("action", "lands"),
    [(stall_reply(), True), (drop_reply(), True), (cut_request(100), False), (stall(), False)],
    ids=lambda value: value.kind if isinstance(value, Action) else "",
)
def test_killed_with_the_manifest_on_the_wire(s3_env: S3Env, action: Action, lands: bool) -> None:
    with Proxy(s3_env.url) as proxy:
        environment = {**os.environ, **s3_env.behind(proxy.url).environment}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.life", s3_env.uri, "3"],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        proxy.on("PUT", r"/snapshots/a0001-n000002-", then(action, process.kill))
        try:
            output, _ = process.communicate(timeout=240)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -9, output
    acknowledged = output.split()
    assert len(acknowledged) == 1

    newest = checker.check(s3_env.uri, acknowledged)
    assert newest is not None
    assert newest.sequence == (2 if lands else 1)
    store = open_store(s3_env.uri)
    world = World(Path(), RAW, inner=store, knows_the_dead=False, acknowledged=acknowledged)
    actor = recover(world)
    assert actor.attempt == 2
    assert str(actor.restored) == str(newest)
    store.close()
