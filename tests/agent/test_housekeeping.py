"""The agent prunes after its commits, beside the uploads, and leaves it where it may not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from spotckpt.agent.housekeeping import Housekeeper
from spotckpt.config import Keep
from spotckpt.deadline import SYSTEM_CLOCK
from spotckpt.errors import Denied
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.pins import pin
from spotckpt.store.open import open_store
from tests.agent.harness import STALE_S, Machine, Trainer
from tests.snapshot.bucket import Wrapped, beat, begin, local_store, said, save, sid
from tests.support.checker import Bucket, check, leftovers
from tests.support.proxy import Proxy, answer, then
from tests.support.servers import S3Env, wait_until

RESTED_S = 200.0
"""A pruning rests for twenty times as long as the one before has worked, which on a busy machine may be seconds."""
_DENIED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"


def settings(keep: str) -> dict[str, Any]:
    return {"stale_after_s": STALE_S, "call_timeout_s": 60.0, "keep": keep}


def stage(trainer: Trainer, uri: str, steps: range) -> list[str]:
    ids = []
    for step in steps:
        ids.append(trainer.stage(uri, step, wait_s=60)["snapshot"])
        trainer.wait_committed(ids[-1])
    return ids


def steps(uri: str) -> list[int]:
    return [one.step for one in Bucket(uri).snapshots]


def test_what_no_rule_keeps_goes_after_the_commits(here: Machine, uri: str, root: Path) -> None:
    here.agent()
    trainer = here.trainer()
    trainer.open(uri, settings=settings("last=2, every=4 steps"))
    first = stage(trainer, uri, range(1, 3))
    pin(open_store(uri), "mine", SnapshotId.parse(first[1]))
    ids = first + stage(trainer, uri, range(3, 8))
    wait_until(lambda: steps(uri) == [1, 2, 4, 6, 7], what="the pruning", timeout_s=RESTED_S)
    assert trainer.call("close", uri=uri, deadline_s=60)["acknowledged"]
    wait_until(lambda: leftovers(uri) == [], what="the end of the pruning", timeout_s=RESTED_S)
    assert str(check(uri, ids)) == ids[-1]
    assert trainer.events("warning") == []


def test_it_ends_as_it_is_asked_to(here: Machine, s3_env: S3Env) -> None:
    """What the last commit made superfluous goes after the release. Another agent goes on with the setting."""
    agent = here.agent()
    trainer = here.trainer(**s3_env.environment)
    trainer.open(s3_env.uri, settings=settings("last=1"))
    ids = stage(trainer, s3_env.uri, range(1, 3))
    agent.kill()
    here.agent(**s3_env.environment)
    trainer.reply(trainer.start("connect"))
    trainer.call("attach", uri=s3_env.uri, attempt=1)
    ids += stage(trainer, s3_env.uri, range(3, 5))
    assert trainer.call("close", uri=s3_env.uri, deadline_s=60)["acknowledged"]
    wait_until(
        lambda: steps(s3_env.uri) == [4] and not leftovers(s3_env.uri), what="the last pruning", timeout_s=RESTED_S
    )
    assert str(check(s3_env.uri, ids)) == ids[-1]


def test_a_denial_within_an_answer_of_success_is_one(s3_env: S3Env) -> None:
    error = b"<Error><Key>run/x</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    body = b'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">' + error + b"</DeleteResult>"
    with Proxy(s3_env.url) as proxy:
        proxy.on("POST", "delete", answer(200, body))
        with pytest.raises(Denied, match="s3:DeleteObject"):
            open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment).delete(["x"])


def test_where_deleting_is_denied_it_is_said_once_and_nothing_is_recorded(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url) as proxy:
        proxy.on("POST", "delete", answer(403, _DENIED), times=1000)
        here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri, settings=settings("last=1"))
        stage(trainer, s3_env.uri, range(1, 4))
        [warning] = wait_until(lambda: trainer.events("warning"), timeout_s=RESTED_S, what="the warning")
        assert "old snapshots stay" in warning["message"] and "s3:DeleteObject" in warning["message"]
        ids = stage(trainer, s3_env.uri, range(4, 6))
        assert trainer.call("close", uri=s3_env.uri, deadline_s=60)["acknowledged"]
        assert len(trainer.events("warning")) == 1
        assert len([seen for seen in proxy.seen if seen.method == "POST" and "delete" in seen.path]) == 1
    assert steps(s3_env.uri) == [1, 2, 3, 4, 5]
    assert not s3_env.keys("run/pruned/")
    assert str(check(s3_env.uri, ids)) == ids[-1]


def test_an_attempt_that_is_superseded_deletes_nothing(here: Machine, s3_env: S3Env) -> None:
    """Another begins while it lists what there is to prune: after its commit, before its first deletion."""

    def overtake() -> None:
        begin(open_store(s3_env.uri), 2, SnapshotId.parse(str(Bucket(s3_env.uri).snapshots[-1])))

    with Proxy(s3_env.url) as proxy:
        agent = here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        # its heart, which would tell too, beats every ten seconds
        trainer.open(s3_env.uri, settings={**settings("last=1"), "stale_after_s": 600.0})
        ids = stage(trainer, s3_env.uri, range(1, 2))
        wait_until(lambda: "pruned 0 snapshots" in agent.log_text, what="the first pruning", timeout_s=RESTED_S)
        proxy.on("GET", "list-type=2", then(answer(503), overtake))
        ids += stage(trainer, s3_env.uri, range(2, 3))
        wait_until(lambda: "prunes no more" in agent.log_text, what="the end of the pruning", timeout_s=RESTED_S)
    assert [str(one) for one in Bucket(s3_env.uri).snapshots] == ids
    assert not s3_env.keys("run/pruned/")


def test_without_the_setting_nothing_is_deleted(here: Machine, uri: str, root: Path) -> None:
    here.agent()
    trainer = here.trainer()
    trainer.open(uri)
    stage(trainer, uri, range(1, 5))
    assert trainer.call("close", uri=uri, deadline_s=60)["acknowledged"]
    assert steps(uri) == [1, 2, 3, 4]
    assert not (root / "pruned").exists()


class NoDeletes(Wrapped):
    deletes = 0

    def delete(self, keys: Iterable[str], **options: Any) -> None:
        self.deletes += 1
        raise Denied("delete", next(iter(keys)), "403", hint="allow s3:DeleteObject")


def test_once_denied_it_never_asks_again(tmp_path: Path) -> None:
    store = NoDeletes(local_store(tmp_path / "run"))
    begin(store, 1)
    for sequence in range(3):
        save(store, sid(1, sequence))
        beat(store, 1, last=sid(1, sequence))
    lines, say = said()
    keeper = Housekeeper(
        Keep(), attempt=1, store=lambda: store, require_ours=lambda: None, tell=say, name="it", clock=SYSTEM_CLOCK
    )
    keeper.committed()
    thread = keeper._thread
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive(), "it waits for more to do"
    keeper.committed()
    keeper.end()
    assert store.deletes == len(lines) == 1
