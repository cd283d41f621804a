"""Agents and trainers that are killed or frozen at the wrong moment."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.agent.harness import HELD_BYTES_PER_S, Machine, Process, Trainer, heartbeat, machine, wait_committed
from tests.support.checker import check
from tests.support.proxy import Proxy
from tests.support.servers import S3Env, wait_until

_NUMBERS = 500_000


@pytest.mark.fault(6)
def test_a_new_agent_adopts_the_claim_and_what_was_staged_meanwhile(here: Machine, uri: str, root: Path) -> None:
    agent = here.agent()
    trainer = here.trainer()
    trainer.open(uri)
    first = trainer.stage(uri, 1)["snapshot"]
    wait_committed(root, 1, first)
    slot = trainer.call("slot", uri=uri, size_bytes=4000, step=2)
    agent.kill()
    trainer.wait_event("lost")
    # the trainer goes on: the slot that it was granted can be filled and sealed without any agent
    trainer.reply(trainer.start("fill", slot=slot, step=2))
    assert heartbeat(root, 1)["last_committed"] == first
    again = here.agent()
    assert trainer.reply(trainer.start("connect"))["agent_pid"] == again.pid
    assert trainer.call("attach", uri=uri, attempt=1)["attempt"] == 1
    wait_committed(root, 1, slot["snapshot"])
    assert heartbeat(root, 1)["holder"]["agent_pid"] == again.pid
    third = trainer.stage(uri, 3, wait_s=60)["snapshot"]
    trainer.wait_committed(third)
    assert trainer.call("close", uri=uri, deadline_s=60)["committed"] == third
    assert not (root / "attempts/0002.json").exists()
    assert str(check(uri, [first, slot["snapshot"], third])) == third


@pytest.mark.fault(6)
def test_an_agent_killed_in_mid_upload_is_followed_by_one_that_commits_it(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        agent = here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        staged = trainer.stage(s3_env.uri, 5, numbers=_NUMBERS)["snapshot"]
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        agent.kill()
        proxy.bytes_per_s = None
        here.agent(**s3_env.environment)
        trainer.reply(trainer.start("connect"))
        trainer.call("attach", uri=s3_env.uri, attempt=1)
        reply = trainer.call("close", uri=s3_env.uri, deadline_s=60)
        assert (reply["committed"], reply["acknowledged"]) == (staged, True)
        assert str(check(s3_env.uri, [staged])) == staged


@pytest.mark.fault(7)
def test_what_a_killed_trainer_had_sealed_still_lands(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        environment = s3_env.behind(proxy.url).environment
        here.agent()
        trainer = here.trainer(**environment)
        trainer.open(s3_env.uri)
        trainer.stage(s3_env.uri, 1, numbers=_NUMBERS)
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        # sealed while the first is under way, and not even told to the agent
        newest = trainer.stage(s3_env.uri, 2, numbers=_NUMBERS, nudge=False)["snapshot"]
        torn = trainer.stage(s3_env.uri, 3, numbers=_NUMBERS, nudge=False, tear=True)["snapshot"]
        trainer.kill()
        assert not [key for key in s3_env.keys("") if newest in key]
        proxy.bytes_per_s = None
        wait_until(lambda: here.runs() == [], what="the release")
        assert str(check(s3_env.uri, [newest])) == newest
        assert not [key for key in s3_env.keys("") if torn in key]
    assert here.tokens() == []
    # released: the next one starts at once, without waiting for the heartbeat to become stale
    successor = here.trainer(**s3_env.environment)
    assert successor.open(s3_env.uri, settings={"stale_after_s": 600.0})["attempt"] == 2
    assert [event for event in successor.events("waiting") if "waiting for attempt" in event["message"]] == []


@pytest.mark.fault(9)
def test_closing_with_an_upload_pending_is_bounded_and_the_agent_goes_on(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri)
        staged = trainer.stage(s3_env.uri, 4, numbers=_NUMBERS)["snapshot"]
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        reply = trainer.call("close", uri=s3_env.uri, deadline_s=1)
        assert (reply["committed"], reply["acknowledged"]) == (None, False)
        assert "not uploaded yet" in reply["failure"]["message"]
        assert trainer.events("progress")[-1]["total_bytes"] == 4 * _NUMBERS
        assert trainer.popen.stdin is not None
        trainer.popen.stdin.close()
        assert trainer.wait() == 0
        proxy.bytes_per_s = None
        wait_until(lambda: here.runs() == [], what="the release")
    assert str(check(s3_env.uri, [staged])) == staged


@pytest.mark.fault(8)
@pytest.mark.fault(55)
@pytest.mark.fault(61)
def test_a_frozen_attempt_that_was_overtaken_reports_it_and_commits_nothing_that_is_chosen(
    here: Machine, tmp_path: Path, s3_env: S3Env
) -> None:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy, machine(tmp_path / "there") as there:
        agent = here.agent()
        zombie = here.trainer(**s3_env.behind(proxy.url).environment)
        zombie.open(s3_env.uri)
        zombie.stage(s3_env.uri, 900, numbers=_NUMBERS)
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        for process in (agent, zombie):  # the whole machine
            process.send(signal.SIGSTOP)
        there.agent()
        # the other machine is another boot, as far as anybody can tell: only the heartbeat counts
        successor = there.trainer(**s3_env.environment)
        assert successor.open(s3_env.uri)["attempt"] == 2
        assert "no sign of life" in str(successor.events("waiting"))
        good = successor.stage(s3_env.uri, 3)["snapshot"]
        successor.wait_committed(good)
        proxy.bytes_per_s = None
        for process in (zombie, agent):
            process.send(signal.SIGCONT)
        event = zombie.wait_event("superseded")
        assert event["uri"] == s3_env.uri
        reply = zombie.call("close", uri=s3_env.uri, deadline_s=60)
        assert (reply["acknowledged"], reply["failure"]["error"]) == (False, "Superseded")
        assert zombie.events("committed") == []
        refused = zombie.answer(zombie.start("stage", uri=s3_env.uri, step=901))
        assert "error" in refused
        assert successor.call("close", uri=s3_env.uri, deadline_s=60)["committed"] == good
        assert str(check(s3_env.uri, [good])) == good


def test_what_both_left_is_committed_before_the_next_claim(here: Machine, uri: str) -> None:
    agent = here.agent()
    trainer = here.trainer()
    trainer.open(uri)
    slot_id = _seal_after_its_death(trainer, agent, uri)
    trainer.kill()
    here.agent()
    successor = here.trainer()
    tag = successor.start_open(uri)
    assert successor.reply(tag)["attempt"] == 2
    assert str(check(uri, [slot_id])) == slot_id


def test_what_both_left_is_dropped_if_the_run_went_on_elsewhere(here: Machine, tmp_path: Path, uri: str) -> None:
    agent = here.agent()
    trainer = here.trainer()
    trainer.open(uri)
    slot_id = _seal_after_its_death(trainer, agent, uri)
    trainer.kill()
    with machine(tmp_path / "there") as there:
        there.agent()
        other = there.trainer()
        assert other.open(uri)["attempt"] == 2
        here.agent()
        wait_until(lambda: here.tokens() == [], what="the drop")
        other.stage(uri, 1)
        assert other.call("close", uri=uri, deadline_s=60)["acknowledged"]
    assert not list(Path(uri.removeprefix("file://")).glob(f"snapshots/{slot_id}*"))
    assert not list(Path(uri.removeprefix("file://")).glob(f"packs/{slot_id}/*"))


def test_a_heartbeat_goes_on_while_an_upload_takes_longer_than_the_time_out(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri)
        trainer.stage(s3_env.uri, 1, numbers=_NUMBERS)
        (pack,) = proxy.wait_for("PUT", r"/packs/.*safetensors")
        beats = len([seen for seen in proxy.seen if "heartbeat" in seen.path and seen.method == "PUT"])
        proxy.wait_for("PUT", "heartbeat", count=beats + 7)  # six fit into the time-out
        assert pack.body_bytes < 4 * _NUMBERS, "the upload was over too soon to show anything"
        proxy.bytes_per_s = None


def _seal_after_its_death(trainer: Trainer, agent: Process, uri: str) -> str:
    """A snapshot of step 7 that no agent has seen sealed."""
    slot = trainer.call("slot", uri=uri, size_bytes=4000, step=7)
    agent.kill()
    trainer.reply(trainer.start("fill", slot=slot, step=7))
    snapshot: str = slot["snapshot"]
    return snapshot
