"""The straight way: open, stage, commit, drain, close; and what stands in it."""

from __future__ import annotations

from pathlib import Path

from tests.agent.harness import Machine, heartbeat
from tests.support.checker import check
from tests.support.servers import wait_until


def test_what_is_sealed_is_committed_and_the_run_is_released(here: Machine, uri: str, root: Path) -> None:
    here.agent()
    trainer = here.trainer()
    assert trainer.open(uri)["attempt"] == 1
    ids = []
    for step in (1, 2, 3):
        ids.append(trainer.stage(uri, step, wait_s=10)["snapshot"])
        trainer.wait_committed(ids[-1])
        assert wait_until(lambda: heartbeat(root, 1)["last_committed"] == ids[-1])
    assert trainer.call("drain", uri=uri, deadline_s=20)["committed"] == ids[-1]
    reply = trainer.call("close", uri=uri, deadline_s=20)
    assert (reply["committed"], reply["acknowledged"]) == (ids[-1], True)
    assert heartbeat(root, 1)["released"] is True
    assert heartbeat(root, 1)["last_committed"] == ids[-1]
    assert (here.tokens(), here.runs()) == ([], [])
    assert str(check(uri, ids)) == ids[-1]
    assert trainer.open(uri)["attempt"] == 2
