"""Several machines that want one run, each with an agent of its own: as processes, against an S3 server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spotckpt.agent.agent import Agent
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.processes import Process as Seen
from spotckpt.agent.processes import start_time
from spotckpt.agent.spool import Spool
from spotckpt.snapshot.catalog import highest_attempt, read_heartbeat
from spotckpt.store.base import Store
from spotckpt.store.open import open_store
from tests.agent.harness import PATIENT_S, STALE_S, Machine, Trainer, machine
from tests.support.checker import check
from tests.support.servers import S3Env, wait_until

IMPATIENT = {"stale_after_s": 600.0, "call_timeout_s": 60.0, "takeover": True}
PATIENT = {"stale_after_s": PATIENT_S, "call_timeout_s": 60.0}


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Machine]:
    """Another machine: it sees nothing of the first but its heartbeats."""
    with machine(tmp_path / "there") as made:
        yield made


@pytest.fixture
def store(s3_env: S3Env) -> Store:
    return open_store(s3_env.uri)


def beats(store: Store, attempt: int) -> int:
    found = read_heartbeat(store, attempt)
    return 0 if found is None else found.count


def waiting(trainer: Trainer, words: str) -> str:
    event = trainer.wait_event("waiting", lambda event: words in event["message"])
    return str(event["message"])


@pytest.mark.fault(60)
def test_of_two_that_start_at_once_one_trains_and_the_other_waits_visibly(
    here: Machine, there: Machine, s3_env: S3Env, store: Store
) -> None:
    here.agent()
    there.agent()
    trainers = [here.trainer(), there.trainer()]
    tags = [trainer.start_open(s3_env.uri, settings=PATIENT) for trainer in trainers]
    wait_until(lambda: highest_attempt(store) == 1, what="the claim")
    wait_until(lambda: any(_answered(*one) for one in zip(trainers, tags, strict=True)), what="a winner")
    winner = next(k for k in (0, 1) if _answered(trainers[k], tags[k]))
    old, new, tag = trainers[winner], trainers[1 - winner], tags[1 - winner]
    assert old.settle(tags[winner], s3_env.uri)["attempt"] == 1
    assert f"process {old.hello['pid']}" in waiting(new, "waiting for attempt 1")
    # for longer than the time-out: the old one lives, and is seen to
    seen = beats(store, 1)
    wait_until(lambda: beats(store, 1) > seen + 8, what="heartbeats")
    assert not _answered(new, tag) and highest_attempt(store) == 1
    last = old.stage(s3_env.uri, 5)["snapshot"]
    assert old.call("close", uri=s3_env.uri, deadline_s=60)["committed"] == last
    assert new.settle(tag, s3_env.uri, snapshot=last)["highest"] == 1
    assert str(check(s3_env.uri, [last])) == last


def _answered(trainer: Trainer, tag: int) -> bool:
    return any(line.get("tag") == tag for line in list(trainer.said))


def test_restarts_on_a_doomed_machine_claim_nothing_and_hold_nobody_up(
    here: Machine, there: Machine, s3_env: S3Env, store: Store
) -> None:
    here.agent()
    trainer = here.trainer()
    trainer.open(s3_env.uri)
    with here.client() as client:
        client.call("notify", timeout=60, action="terminate", in_s=100)
    trainer.wait_event("notice")
    last = trainer.stage(s3_env.uri, 5)["snapshot"]
    assert trainer.call("close", uri=s3_env.uri, deadline_s=60)["committed"] == last
    for _ in range(2):
        again = here.trainer()
        again.start_open(s3_env.uri)
        waiting(again, "not starting on this machine")
        again.kill()
    again = here.trainer()
    tag = again.start_open(s3_env.uri)
    waiting(again, "not starting on this machine")
    assert highest_attempt(store) == 1
    there.agent()
    successor = there.trainer()
    assert successor.open(s3_env.uri, snapshot=last, settings=PATIENT)["attempt"] == 2
    # a mistake after all: it waits for its turn like anybody else
    with here.client() as client:
        client.call("notify", timeout=60, clear=True)
    assert f"process {successor.hello['pid']}" in waiting(again, "waiting for attempt 2")
    successor.call("close", uri=s3_env.uri, deadline_s=60)
    assert again.reply(tag)["attempt"] == 3


@pytest.mark.fault(6)
@pytest.mark.fault(61)
def test_the_successor_of_a_dead_agent_finds_itself_superseded(
    here: Machine, there: Machine, s3_env: S3Env, store: Store
) -> None:
    agent = here.agent()
    trainer = here.trainer()
    trainer.open(s3_env.uri)
    slot = trainer.call("slot", uri=s3_env.uri, size_bytes=4000, step=900)
    agent.kill()
    there.agent()
    successor = there.trainer()
    # the trainer lives on, which another machine cannot know
    tag = successor.start_open(s3_env.uri)
    assert "no sign of life" in waiting(successor, "taking over")
    assert successor.settle(tag, s3_env.uri)["attempt"] == 2
    good = successor.stage(s3_env.uri, 3)["snapshot"]
    successor.wait_committed(good)
    trainer.reply(trainer.start("fill", slot=slot, step=900))
    here.agent()
    trainer.reply(trainer.start("connect"))
    attached = trainer.answer(trainer.start("call", op="attach", fields={"uri": s3_env.uri, "attempt": 1}))
    if "error" not in attached:
        trainer.wait_event("superseded")
    trainer.kill()
    wait_until(lambda: here.tokens() == [], what="the end of attempt 1")
    assert [key for key in s3_env.keys("run/") if slot["snapshot"] in key] == []
    assert successor.call("close", uri=s3_env.uri, deadline_s=60)["committed"] == good
    assert str(check(s3_env.uri, [good])) == good


def test_heartbeats_do_not_wait_behind_a_limited_upload(here: Machine, there: Machine, s3_env: S3Env) -> None:
    """A limit of a fiftieth of the snapshot: pieces of it queue for longer than the time-out."""
    here.agent()
    there.agent()
    trainer, other = here.trainer(), there.trainer()
    settings = {"stale_after_s": STALE_S, "call_timeout_s": 60.0, "upload_limit": 40_000.0}
    trainer.open(s3_env.uri, settings=settings)
    trainer.stage(s3_env.uri, 1, numbers=500_000)
    wait_until(lambda: here.runs()[0]["uploading"], what="the upload")
    store = open_store(s3_env.uri)
    seen = beats(store, 1)
    tag = other.start_open(s3_env.uri, settings=PATIENT)
    wait_until(lambda: beats(store, 1) > seen + 7 * PATIENT_S / STALE_S, what="heartbeats for longer than the time-out")
    assert here.runs()[0]["uploading"] and not _answered(other, tag)


def test_a_takeover_does_not_wait_and_the_old_attempt_is_fenced(
    here: Machine, there: Machine, s3_env: S3Env, store: Store
) -> None:
    here.agent()
    there.agent()
    old = here.trainer()
    old.open(s3_env.uri, settings={"stale_after_s": 600.0, "call_timeout_s": 60.0})
    first = old.stage(s3_env.uri, 1)["snapshot"]
    old.wait_committed(first)
    slot = old.call("slot", uri=s3_env.uri, size_bytes=4000, step=900)
    new = there.trainer()
    tag = new.start_open(s3_env.uri, settings=IMPATIENT)
    assert f"process {old.hello['pid']}" in waiting(new, "taking over without waiting")
    assert new.settle(tag, s3_env.uri, snapshot=first)["attempt"] == 2
    old.reply(old.start("fill", slot=slot, step=900))
    old.start("call", op="sealed", fields={"uri": s3_env.uri, "generation": slot["generation"]})
    old.wait_event("superseded")
    good = new.stage(s3_env.uri, 2)["snapshot"]
    assert new.call("close", uri=s3_env.uri, deadline_s=60)["committed"] == good
    assert old.call("close", uri=s3_env.uri, deadline_s=60)["failure"]["error"] == "Superseded"
    assert [key for key in s3_env.keys("run/snapshots") if slot["snapshot"] in key] == []
    assert str(check(s3_env.uri, [first, good])) == good


def test_a_run_that_is_promised_to_one_is_no_other_s(tmp_path: Path) -> None:
    spool = Spool(tmp_path, tmp_path / "disk")
    agent = Agent(
        spool, AgentOptions(), first_look=threading.Event(), watch_process=lambda process: None, poke=lambda: None
    )
    me, parent, dead = Seen.current(), Seen(os.getppid(), start_time(os.getppid()) or 0), Seen(1, 1)
    agent.promise("file:///x", me)
    assert not agent.begin_opening("file:///x", parent)
    assert agent.begin_opening("file:///x", me)
    agent.end_opening("file:///x")
    agent.promise("file:///x", dead)
    assert agent.begin_opening("file:///x", parent)


def test_on_one_machine_a_takeover_commits_what_is_sealed_first(here: Machine, s3_env: S3Env, store: Store) -> None:
    here.agent()
    old, new = here.trainer(), here.trainer()
    old.open(s3_env.uri)
    patient = [here.trainer() for _ in range(3)]
    patient_tags = [trainer.start_open(s3_env.uri) for trainer in patient]
    for trainer in patient:
        waiting(trainer, "in use by process")
    sealed = old.stage(s3_env.uri, 1, nudge=False)["snapshot"]
    tag = new.start_open(s3_env.uri, settings=IMPATIENT)
    old.wait_event("superseded")
    assert new.settle(tag, s3_env.uri, snapshot=sealed)["attempt"] == 2
    refused = old.answer(old.start("stage", uri=s3_env.uri, step=2))
    assert "error" in refused
    attach = old.answer(old.start("call", op="attach", fields={"uri": s3_env.uri, "attempt": 1}))
    assert attach["error"] == "Superseded"
    assert str(check(s3_env.uri, [sealed])) == sealed
    beat = read_heartbeat(store, 1)
    assert beat is not None and beat.ended == "taken over"
    assert not any(_answered(*one) for one in zip(patient, patient_tags, strict=True))
