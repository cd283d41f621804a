"""The straight way: open, stage, commit, drain, close; and what stands in it."""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path

import pytest

from spotckpt.agent.sending import Transfer
from spotckpt.snapshot.manifest import Manifest
from tests.agent.harness import HELD_BYTES_PER_S, STALE_S, Machine, heartbeat, wait_committed
from tests.support.checker import check
from tests.support.mounts import tmpfs
from tests.support.proxy import Proxy, answer
from tests.support.servers import S3Env, wait_until

_DENIED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"


def test_what_is_sealed_is_committed_and_the_run_is_released(here: Machine, uri: str, root: Path) -> None:
    here.agent()
    trainer = here.trainer()
    assert trainer.open(uri)["attempt"] == 1
    ids = []
    for step in (1, 2, 3):
        ids.append(trainer.stage(uri, step, wait_s=60)["snapshot"])
        trainer.wait_committed(ids[-1])
        wait_committed(root, 1, ids[-1])
    assert trainer.call("drain", uri=uri, deadline_s=60)["committed"] == ids[-1]
    reply = trainer.call("close", uri=uri, deadline_s=60)
    assert (reply["committed"], reply["acknowledged"]) == (ids[-1], True)
    assert heartbeat(root, 1)["released"] is True
    assert heartbeat(root, 1)["last_committed"] == ids[-1]
    assert here.tokens() == []
    wait_until(lambda: here.runs() == [], what="the end of the run")
    assert str(check(uri, ids)) == ids[-1]
    assert trainer.open(uri)["attempt"] == 2


def test_no_more_is_told_as_sent_than_there_was_to_send() -> None:
    """Headers and the table of the state go too, and nobody planned them; what goes over the line may go again."""
    sent = Transfer("a0001-x", 100, 0.0, sent_bytes=130, gone_bytes=150).to_json()
    assert sent == {"id": "a0001-x", "sent_bytes": 100, "gone_bytes": 150, "total_bytes": 100}


def test_a_refused_upload_is_told_tried_again_and_disturbs_no_other_run(here: Machine, s3_env: S3Env, uri: str) -> None:
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "/packs/", answer(403, _DENIED), times=float("inf"))
        here.agent()
        unlucky, other = here.trainer(**s3_env.behind(proxy.url).environment), here.trainer()
        unlucky.open(s3_env.uri)
        other.open(uri)
        first = unlucky.stage(s3_env.uri, 1)["snapshot"]
        event = unlucky.wait_event("error")
        assert (event["uri"], event["error"]) == (s3_env.uri, "Denied")
        assert "packs/" in event["message"]
        (run,) = [run for run in here.runs() if run["uri"] == s3_env.uri]
        assert (run["error"]["error"], run["last_committed"]) == ("Denied", None)
        other.wait_committed(other.stage(uri, 1)["snapshot"])
        # a drain ends with the refusal instead of waiting for somebody to grant the permission
        drained = unlucky.call("drain", uri=s3_env.uri, deadline_s=None)
        assert (drained["acknowledged"], drained["failure"]["error"]) == (False, "Denied")
        proxy.clear()
        unlucky.wait_committed(first)
        assert len(unlucky.events("error")) == 1, "the same error was told again"
        assert unlucky.call("close", uri=s3_env.uri, deadline_s=60)["acknowledged"]


def test_a_store_that_refuses_the_trainer_is_its_error_and_nothing_is_kept(here: Machine, s3_env: S3Env) -> None:
    here.agent()
    trainer = here.trainer(**{**s3_env.environment, "AWS_ENDPOINT_URL_S3": s3_env.url})
    missing = trainer.answer(trainer.start_open("s3://not-a-bucket-of-ours/run"))
    assert missing["error"] == "BucketMissing"
    assert (here.runs(), here.tokens()) == ([], [])
    twice = s3_env.uri
    trainer.open(twice)
    again = trainer.answer(trainer.start_open(twice))
    assert again["error"] == "AgentError"
    assert "open in this process already" in again["message"]
    early = here.trainer(**s3_env.environment)
    stolen = early.answer(early.start("stage", uri=twice, step=1))
    assert "is not open in this process" in stolen["message"]


def test_slots_are_busy_wait_and_come_back(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        here.agent("--slots=2")
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri)
        before_base = here.trainer(**s3_env.environment)
        tag = before_base.start_open(f"{s3_env.uri}-2")
        before_base.reply(tag)
        refused = before_base.answer(before_base.start("stage", uri=f"{s3_env.uri}-2", step=1))
        assert "before the base is recorded" in refused["message"]
        trainer.stage(s3_env.uri, 1, numbers=500_000)
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        given_up = trainer.call("slot", uri=s3_env.uri, size_bytes=4000, step=2)
        given = trainer.call("slot", uri=s3_env.uri, size_bytes=4000, step=3)
        assert given["path"] == given_up["path"], "a grant that nobody sealed keeps its slot"
        trainer.call("abort", uri=s3_env.uri, generation=given["generation"])
        trainer.stage(s3_env.uri, 4)
        busy = trainer.call("slot", uri=s3_env.uri, size_bytes=4000, step=5)
        assert (busy["busy"], busy["wait"]) == (True, False)
        fields = {"uri": s3_env.uri, "size_bytes": 4000, "step": 5, "wait_s": 60}
        waiting = trainer.start("call", op="slot", fields=fields)
        proxy.bytes_per_s = None
        assert "generation" in trainer.reply(waiting)


def test_what_was_asked_for_is_not_dropped_for_a_newer_one(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        here.agent("--slots=6")
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri)
        first = trainer.stage(s3_env.uri, 1, numbers=500_000)["snapshot"]
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        reasons = ["best", "periodic", "manual", "best", "periodic"]
        ids = [trainer.stage(s3_env.uri, 2 + n, reason=reason)["snapshot"] for n, reason in enumerate(reasons)]
        proxy.bytes_per_s = None
        assert trainer.call("close", uri=s3_env.uri, deadline_s=60)["acknowledged"]
    _older_best, _periodic, manual, best, newest = ids
    committed = [event["id"] for event in trainer.events("committed")]
    assert committed == [first, manual, best, newest]
    assert str(check(s3_env.uri, committed)) == newest


@pytest.mark.fault(48)
def test_an_upload_that_would_overrun_the_deadline_is_declared(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=400_000.0) as proxy:
        here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri)
        staged = trainer.stage(s3_env.uri, 1, numbers=300_000)["snapshot"]
        trainer.wait_committed(staged)
        trainer.call("notify", action="terminate", in_s=3.0)
        notice = trainer.wait_event("notice")
    assert notice["plan"] == "last"
    assert re.search(r"no time for another \(1\.2 MB at 0\.\d MB/s take \d+\.\d s", notice["why"])


def test_before_a_deadline_the_newest_goes_first(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        here.agent("--slots=6")
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        # with such a reserve there is time for one only, however long it takes to come to that decision
        trainer.open(s3_env.uri, settings={"call_timeout_s": 60.0, "reserve_s": 600.0})
        trainer.stage(s3_env.uri, 1, numbers=500_000)
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        best = trainer.stage(s3_env.uri, 2, numbers=500_000, reason="best")["snapshot"]
        newest = trainer.stage(s3_env.uri, 3, numbers=500_000)["snapshot"]
        trainer.call("notify", action="terminate", in_s=600)
        proxy.bytes_per_s = None
        trainer.wait_committed(newest)
    assert trainer.wait_event("dropped")["id"] == best
    assert best not in [event["id"] for event in trainer.events("committed")]


def test_periodic_snapshots_are_uploaded_less_often_than_staged_and_an_end_uploads_the_newest(
    here: Machine, uri: str, root: Path
) -> None:
    here.agent()
    trainer = here.trainer()
    trainer.open(uri, settings={"stale_after_s": STALE_S, "upload_every_s": 3600.0})
    first = trainer.stage(uri, 1)["snapshot"]
    trainer.wait_committed(first)
    for step in (2, 3, 4, 5):
        here.wait_at_rest()
        assert "snapshot" in trainer.stage(uri, step), "a snapshot that waits for its upload keeps a newer one away"
    here.wait_at_rest()
    best = trainer.stage(uri, 6, reason="best")["snapshot"]
    wait_committed(root, 1, best)
    assert [event["id"] for event in trainer.events("committed")] == [first, best]
    for step in (7, 8, 9):
        here.wait_at_rest()
        ended = trainer.stage(uri, step)["snapshot"]
    assert heartbeat(root, 1)["last_committed"] == best
    assert len(here.runs()[0]["slots"]) == 2, "one that no upload needs is not used"
    trainer.kill()
    wait_until(lambda: heartbeat(root, 1)["released"])
    assert heartbeat(root, 1)["last_committed"] == ended
    assert str(check(uri, [first, best, ended])) == ended


def test_an_upload_keeps_to_the_limit(here: Machine, uri: str, root: Path) -> None:
    here.agent()
    trainer = here.trainer()
    trainer.open(uri, settings={"stale_after_s": STALE_S, "upload_limit": 400_000.0})
    trainer.wait_committed(trainer.stage(uri, 1, numbers=300_000)["snapshot"])
    (path,) = (root / "snapshots").iterdir()
    manifest = Manifest.from_bytes(path.read_bytes(), key=f"snapshots/{path.name}")
    assert manifest.timings["upload"] > 1.5, "1.2 MB, of which the first 0.26 need not wait, take over two seconds"


def test_what_asks_for_an_upload_does_not_wait_for_upload_every(here: Machine, uri: str, root: Path) -> None:
    here.agent()
    trainer = here.trainer()
    trainer.open(uri, settings={"stale_after_s": STALE_S, "upload_every_s": 3600.0})
    trainer.wait_committed(trainer.stage(uri, 1)["snapshot"])
    on_drain = trainer.stage(uri, 2)["snapshot"]
    trainer.call("drain", uri=uri, deadline_s=0)  # what SIGTERM does
    trainer.wait_committed(on_drain)
    on_notice = trainer.stage(uri, 3)["snapshot"]
    trainer.call("notify", action="rebalance", kind="rebalance", in_s=None)
    trainer.wait_committed(on_notice)
    here.wait_at_rest()  # until then what is urgent is so for the next one, too
    adopted = trainer.stage(uri, 4)["snapshot"]
    assert trainer.events("committed")[-1]["id"] == on_notice
    here.processes[0].end()
    here.agent()
    trainer.reply(trainer.start("connect"))
    wait_committed(root, 1, adopted)


def test_with_room_for_one_a_snapshot_waits_for_the_upload_before(here: Machine, uri: str) -> None:
    with tmpfs(here.spool, "size=6m"), tmpfs(here.path / "disk", "size=1m"):
        here.agent()
        trainer = here.trainer()
        trainer.open(uri, settings={"stale_after_s": STALE_S, "upload_every_s": 3600.0})
        trainer.wait_committed(trainer.stage(uri, 1)["snapshot"])
        second = trainer.stage(uri, 2, wait_s=60)["snapshot"]  # the slot is freed after the first is told
        busy = trainer.call("slot", uri=uri, size_bytes=4000, step=3)
        assert busy["wait"]
        waited = trainer.call("slot", uri=uri, size_bytes=4000, step=3, wait_s=60)
        assert "generation" in waited
        assert trainer.events("committed")[-1]["id"] == second
        (told,) = {event["message"] for event in trainer.events("warning")}
        assert "one snapshot only" in told
        assert f"{here.spool}" in told
        here.end()


@pytest.mark.fault(86)
def test_saves_faster_than_uploads_take_three_slots_and_the_newest_wins(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri)
        staged = []
        for step in range(1, 21):
            reply = trainer.stage(s3_env.uri, step, numbers=200_000)
            staged += [] if reply.get("busy") else [reply["snapshot"]]
            assert len(here.runs()[0]["slots"]) <= 3
        assert len(staged) > 5
        proxy.bytes_per_s = None
        closed = trainer.call("close", uri=s3_env.uri, deadline_s=60)
    assert closed["acknowledged"] and closed["committed"] == staged[-1]
    committed = [event["id"] for event in trainer.events("committed")]
    assert committed == sorted(committed) and set(committed) <= set(staged)
    assert len(committed) < len(staged), "every snapshot was uploaded: nothing was slow here"
    assert str(check(s3_env.uri, committed)) == staged[-1]


@pytest.mark.fault(84)
def test_an_agent_without_descriptors_goes_on_when_it_has_some_again(here: Machine, uri: str) -> None:
    agent = here.agent()
    trainer = here.trainer()
    trainer.open(uri)
    trainer.wait_committed(trainer.stage(uri, 1)["snapshot"])
    slot = trainer.call("slot", uri=uri, size_bytes=4000, step=2)
    before = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    trainer.reply(trainer.start("fill", slot=slot, step=2))
    told = trainer.answer(trainer.start("call", op="sealed", fields={"uri": uri, "generation": slot["generation"]}))
    assert told.get("error") in (None, "SpoolError", "AgentError")
    time.sleep(1.5)  # some turns of the agent's
    assert agent.popen.poll() is None
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, before)
    trainer.wait_committed(slot["snapshot"])
    trainer.wait_committed(trainer.stage(uri, 3)["snapshot"])
    assert trainer.call("close", uri=uri, deadline_s=60)["acknowledged"]
