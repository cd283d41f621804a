"""How a training ends, by the table of endings: exit status, what is in the bucket, what the next start does.

Every training here is a process of its own with a private agent, as a user's would be.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import S3Env, wait_until
from tests.training.forked import SCRIPT
from tests.training.machine import PATIENCE_S, Bucket, Machine, machine

STEPS = 10  # two epochs of five batches


def reasons(bucket: Bucket) -> list[str]:
    return [manifest["reason"] for manifest in bucket.manifests()]


def test_returning_commits_the_final_snapshot_and_a_restart_changes_nothing(here: Machine, s3_env: S3Env) -> None:
    here.environment.update(s3_env.environment)
    bucket = Bucket(s3_env.uri)
    first = here.train(bucket.uri)
    assert first.said.startswith(f"spotckpt: new run {bucket.uri} (attempt 1)\n")
    last = bucket.manifests()[-1]
    assert (last["reason"], last["finished"], last["step"]) == ("final", True, STEPS)
    assert bucket.released(1) and bucket.ended(1) == "finished"
    before = bucket.listing()
    again = here.train(bucket.uri)
    assert again.said.startswith(f"spotckpt: finished run {bucket.uri} ")
    assert again.steps == []
    assert again.end == first.end
    assert bucket.listing() == before
    more = here.train(bucket.uri, "--epochs=3")
    assert more.steps == list(range(STEPS, STEPS + 5))
    assert bucket.attempts() == [1, 2]
    assert f"resumed {bucket.uri} from {last['snapshot']} (step 10" in more.said
    assert "argument epochs changed: 2 → 3" in more.said


def test_an_exception_keeps_its_traceback_and_captures_nothing(here: Machine, bucket: Bucket, plain: str) -> None:
    failed = here.train(bucket.uri, "--at=3", "--act=raise", status=1)
    assert "ValueError: boom" in failed.said and "Traceback" in failed.said
    assert bucket.manifests()[-1]["step"] == 3, "the newest sealed one, of the boundary before"
    assert "final" not in reasons(bucket)
    assert bucket.released(1) and bucket.ended(1) == "ValueError"
    resumed = here.train(bucket.uri)
    assert resumed.steps == list(range(3, STEPS))
    assert resumed.end == plain
    assert "(step 3, epoch 0, batch 3), attempt 2" in resumed.said.splitlines()[0]


def test_system_exit_keeps_its_status_and_is_never_final(here: Machine, bucket: Bucket) -> None:
    here.train(bucket.uri, "--at=3", "--act=exit", status=3)
    assert bucket.manifests()[-1]["step"] == 3
    assert "final" not in reasons(bucket)
    assert bucket.released(1) and bucket.ended(1) == "SystemExit"


def test_ctrl_c_is_an_exception_like_others(here: Machine, bucket: Bucket) -> None:
    trainer = here.start(bucket.uri, "--at=3", "--act=hold", exec_python=True)
    trainer.wait_for("holding")
    trainer.signal(signal.SIGINT)
    assert trainer.wait() == -signal.SIGINT
    assert "KeyboardInterrupt" in trainer.said
    assert bucket.manifests()[-1]["step"] == 3
    assert bucket.released(1) and bucket.ended(1) == "Ctrl-C"
    assert f"the last committed snapshot is {bucket.manifests()[-1]['snapshot']}\n" in trainer.said


def test_finish_ends_the_run_at_the_end_of_the_iteration(here: Machine, bucket: Bucket) -> None:
    trainer = here.train(bucket.uri, "--at=6", "--act=finish")
    assert trainer.steps == list(range(7))
    last = bucket.manifests()[-1]
    assert (last["reason"], last["finished"], last["step"]) == ("final", True, 7)
    before = bucket.listing()
    assert here.train(bucket.uri).steps == []
    assert bucket.listing() == before


@pytest.mark.fault(3)
def test_sigterm_saves_this_very_boundary(here: Machine, bucket: Bucket, plain: str) -> None:
    trainer = here.start(bucket.uri, "--every=1h", "--at=7", "--act=spin")
    trainer.wait_for("spinning")
    trainer.signal(signal.SIGTERM)
    trainer.wait_to_say("SIGTERM")
    trainer.signal(signal.SIGTERM)
    trainer.go()
    assert trainer.wait() == 75
    assert "Traceback" not in trainer.said
    assert [(m["reason"], m["step"]) for m in bucket.manifests()] == [("notice", 8)]
    assert bucket.released(1) and bucket.ended(1) == "SIGTERM"
    resumed = here.train(bucket.uri)
    assert resumed.steps == [8, 9]
    assert resumed.end == plain


@pytest.mark.fault(88)
def test_ends_in_the_middle_of_overlapped_copies_change_nothing(here: Machine, bucket: Bucket, tmp_path: Path) -> None:
    """24 MB lie between the weights and their momentum, so that a copy outlasts forward and backward by far."""
    options = ("--overlap", "--width=20000", "--frozen=6000000", "--epochs=6")
    uninterrupted = here.train(f"file://{tmp_path}/uninterrupted", *options, "--every=1h").end
    chance = random.Random(7)
    for step, number in ((2, signal.SIGKILL), (12, signal.SIGTERM), (22, signal.SIGKILL)):
        sent = f"--at={step}", "--act=signal", f"--signal={number:d}", f"--after={chance.uniform(0.0, 0.03)}"
        here.train(bucket.uri, *options, *sent, status=75 if number == signal.SIGTERM else -number)
    assert here.train(bucket.uri, *options).end == uninterrupted


def test_a_notice_stops_the_training_and_a_restart_waits_without_claiming(here: Machine, bucket: Bucket) -> None:
    trainer = here.start(bucket.uri, "--every=1h", "--at=4", "--act=spin")
    trainer.wait_for("spinning")
    with here.client() as client:
        client.call("notify", timeout=PATIENCE_S, action="terminate")
    trainer.wait_to_say("terminate")
    trainer.go()
    assert trainer.wait() == 75
    assert [(m["reason"], m["step"]) for m in bucket.manifests()] == [("notice", 5)]
    before = bucket.listing()
    waiting = here.start(bucket.uri)
    waiting.wait_to_say("terminate")
    assert bucket.listing() == before and bucket.attempts() == [1]
    with here.client() as client:
        client.call("notify", timeout=PATIENCE_S, clear=True)
    assert waiting.wait() == 0
    assert waiting.steps == list(range(5, STEPS))
    assert (bucket.ended(1), bucket.ended(2)) == ("manual notice (terminate)", "finished")


def test_a_rebalance_recommendation_takes_one_snapshot_and_training_goes_on(here: Machine, bucket: Bucket) -> None:
    trainer = here.start(bucket.uri, "--every=1h", "--at=4", "--act=hear")
    trainer.wait_for("step 4")
    with here.client() as client:
        client.call("notify", timeout=PATIENCE_S, action="rebalance")
    assert trainer.wait() == 0
    assert [(m["reason"], m["step"]) for m in bucket.manifests()] == [("notice", 5), ("final", STEPS)]


def test_superseded_writes_nothing_and_has_a_status_of_its_own(here: Machine, bucket: Bucket) -> None:
    first = here.start(bucket.uri, "--stale-after=1s", "--at=4", "--act=spin")  # and so it beats fast
    first.wait_for("spinning")
    wait_until(lambda: any(m["step"] == 4 for m in bucket.manifests()), what="the snapshot of step 4")
    pid = here.agent_pid()
    here.stop(pid)
    with machine() as elsewhere:
        second = elsewhere.start(bucket.uri, "--stale-after=1s", "--at=6", "--act=spin")
        second.wait_for("spinning")
        here.resume(pid)
        before = {key for key in bucket.listing() if "a0001-" in key}
        first.go()
        assert first.wait() == 76, first.said
        assert {key for key in bucket.listing() if key.startswith("snapshots/a0001-")} <= before
        second.go()
        assert second.wait() == 0
    assert bucket.manifests()[-1]["finished"]
    base = bucket.record("attempts/0002.base.json")["snapshot"]
    assert base.startswith("a0001-") and "-s00000004-" in base


@pytest.mark.fault(6)
def test_an_agent_that_dies_is_replaced_at_once_and_its_successor_is_heard(here: Machine, bucket: Bucket) -> None:
    trainer = here.start(bucket.uri, "--every=1h", "--at=4", "--act=spin")
    trainer.wait_for("spinning")
    before = here.agent_pid()
    here.kill_agent()
    trainer.wait_to_say("the new agent has taken over")
    assert here.agent_pid() != before
    with here.client() as client:
        client.call("notify", timeout=PATIENCE_S, action="terminate")
    trainer.wait_to_say("stopping at the next boundary")
    trainer.go()
    assert trainer.wait() == 75, trainer.said
    assert [manifest["reason"] for manifest in bucket.manifests()] == ["notice"]


def test_a_frozen_agent_costs_snapshots_and_not_the_training(here: Machine, bucket: Bucket, plain: str) -> None:
    trainer = here.start(bucket.uri, "--at=4", "--act=spin")
    trainer.wait_for("spinning")
    pid = here.agent_pid()
    here.stop(pid)
    trainer.go()
    trainer.wait_for("step 9")
    assert "warning: the agent did not answer 'slot'" in trainer.said
    here.resume(pid)
    assert trainer.wait() == 0, trainer.said
    assert trainer.end == plain
    assert bucket.manifests()[-1]["finished"]


@pytest.mark.fault(7, 13)
@pytest.mark.parametrize("how", ["kill", "os_exit"])
def test_what_was_sealed_is_committed_after_the_trainer_is_gone(
    here: Machine, bucket: Bucket, plain: str, how: str
) -> None:
    if how == "kill":
        trainer = here.start(bucket.uri, "--at=6", "--act=hold")
        trainer.wait_for("holding")
        trainer.signal(signal.SIGKILL)
        assert trainer.wait() == -signal.SIGKILL
    else:
        trainer = here.train(bucket.uri, "--at=6", "--act=os_exit", status=9)
    wait_until(lambda: bucket.released(1), what="the release of the attempt")
    assert bucket.manifests()[-1]["step"] == 6 and bucket.ended(1) == "gone"
    resumed = here.train(bucket.uri)
    assert resumed.steps == list(range(6, STEPS))
    assert resumed.end == plain


@pytest.mark.fault(6)
def test_training_goes_on_without_its_agent_and_a_new_one_commits(here: Machine, bucket: Bucket, plain: str) -> None:
    trainer = here.start(bucket.uri, "--epochs=60", "--delay=0.05", "--at=250", "--act=spin")
    trainer.wait_for("step 3")
    old = here.agent_pid()
    here.kill_agent()
    killed_at = trainer.steps[-1]
    trainer.wait_to_say("the new agent has taken over")
    assert here.agent_pid() != old
    wait_until(
        lambda: any(m["step"] > killed_at + 1 for m in bucket.manifests()), timeout_s=60, what="a later snapshot"
    )
    assert trainer.status is None
    trainer.signal(signal.SIGTERM)
    assert trainer.wait() == 75
    assert bucket.attempts() == [1]
    assert bucket.manifests()[-1]["reason"] == "notice"


@pytest.mark.fault(9)
def test_a_final_snapshot_is_not_lost_with_the_agent(here: Machine, bucket: Bucket, plain: str) -> None:
    trainer = here.start(bucket.uri, "--every=1h", "--at=9", "--act=spin")
    trainer.wait_for("spinning")
    here.kill_agent()
    trainer.go()
    assert trainer.wait() == 0, trainer.said
    assert bucket.manifests()[-1]["finished"]
    assert trainer.end == plain


def test_killed_before_the_first_commit_is_a_fresh_start_said_aloud(here: Machine, bucket: Bucket, plain: str) -> None:
    trainer = here.start(bucket.uri, "--every=1h", "--at=3", "--act=hold")
    trainer.wait_for("holding")
    trainer.signal(signal.SIGKILL)
    trainer.wait()
    again = here.train(bucket.uri)
    assert again.said.startswith(f"spotckpt: new run {bucket.uri} (attempt 2)\n")
    assert "nothing was committed" in again.said
    assert again.end == plain


@pytest.mark.fault(11)
def test_a_state_dict_that_raises_makes_nothing_visible(here: Machine, bucket: Bucket) -> None:
    trainer = here.train(bucket.uri, "--at=4", "--act=broken", status=1)
    assert "ZeroDivisionError: the state is broken" in trainer.said
    assert bucket.manifests()[-1]["step"] == 4
    assert trainer.steps[-1] == 4
    assert bucket.released(1)
    assert here.train(bucket.uri).steps == list(range(4, STEPS))


def test_under_a_notice_an_unencodable_value_is_reported_and_the_last_sealed_one_goes(
    here: Machine, bucket: Bucket
) -> None:
    trainer = here.start(bucket.uri, "--at=4", "--act=unencodable_spin")
    trainer.wait_for("spinning")
    trainer.signal(signal.SIGTERM)
    trainer.wait_to_say("SIGTERM")
    trainer.go()
    assert trainer.wait() == 75, trainer.said
    assert "extra" in trainer.said and "function" in trainer.said
    assert bucket.manifests()[-1]["step"] == 4
    assert bucket.released(1)


def test_sigterm_while_waiting_for_its_turn_ends_at_once(here: Machine, bucket: Bucket) -> None:
    holder = here.start(bucket.uri, "--at=4", "--act=spin")
    holder.wait_for("spinning")
    waiting = here.start(bucket.uri)
    waiting.wait_to_say("is in use by process")
    waiting.signal(signal.SIGTERM)
    assert waiting.wait() == 75
    assert bucket.attempts() == [1]
    holder.go()
    assert holder.wait() == 0


def test_a_training_that_is_pid_1_is_told_what_that_means(here: Machine, bucket: Bucket, tmp_path: Path) -> None:
    isolated = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make PID namespaces")
    command = [*isolated, sys.executable, str(SCRIPT), f"--uri={bucket.uri}", f"--trace={tmp_path}/trace"]
    done = subprocess.run(command, env=here.environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "PID 1" in done.stderr
    assert bucket.manifests()[-1]["finished"]


def test_a_start_that_waited_while_the_run_was_finished_adds_nothing(here: Machine, bucket: Bucket) -> None:
    first = here.start(bucket.uri, "--at=9", "--act=spin")
    first.wait_for("spinning")
    second = here.start(bucket.uri)
    second.wait_to_say("is in use")
    first.go()
    assert first.wait() == second.wait() == 0
    assert second.steps == [] and second.end == first.end
    assert "finished run" in second.said and "attempt 2 is released" in second.said
    assert reasons(bucket).count("final") == 1 and bucket.manifests()[-1]["snapshot"].startswith("a0001-")
    assert bucket.attempts() == [1, 2] and bucket.released(2)
    assert here.train(bucket.uri, "--epochs=3").steps == list(range(STEPS, STEPS + 5))
