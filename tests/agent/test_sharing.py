"""What did not change is uploaded once, by whichever agent; and a manifest that may have landed is the only one."""

from __future__ import annotations

import pytest

from tests.agent.harness import Machine, Process, Trainer
from tests.support.checker import check
from tests.support.proxy import Proxy, drop_reply, then
from tests.support.servers import S3Env, wait_until

FROZEN, NUMBERS = 500_000, 1000


def sizes(s3_env: S3Env) -> dict[str, int]:
    """Pack objects by the snapshot that sent them."""
    listed = s3_env.client.list_objects_v2(Bucket=s3_env.bucket, Prefix="run/packs/")["Contents"]
    return {one["Key"].split("/")[2]: one["Size"] for one in listed if one["Key"].endswith(".safetensors")}


def etag(s3_env: S3Env, snapshot: str, name: str) -> str:
    key = f"run/packs/{snapshot}/rank-00000.{name}"
    return str(s3_env.client.head_object(Bucket=s3_env.bucket, Key=key)["ETag"])


def lose_the_part(s3_env: S3Env, snapshot: str) -> None:
    s3_env.client.delete_object(Bucket=s3_env.bucket, Key=f"run/packs/{snapshot}/rank-00000.json")


def go_on(here: Machine, trainer: Trainer, s3_env: S3Env) -> Process:
    """Another agent, which adopts the run; and the trainer with it."""
    agent = here.agent(**s3_env.environment)
    trainer.reply(trainer.start("connect"))
    trainer.call("attach", uri=s3_env.uri, attempt=1)
    return agent


def dead_amid_the_second(here: Machine, s3_env: S3Env, proxy: Proxy, *, at: str) -> tuple[Process, Trainer, str, str]:
    """An agent that is killed when a PUT of the second snapshot has landed; it, the trainer and both snapshots."""
    agent = here.agent()
    trainer = here.trainer(**s3_env.behind(proxy.url).environment)
    trainer.open(s3_env.uri)
    first = trainer.stage(s3_env.uri, 1, frozen=FROZEN)["snapshot"]
    trainer.wait_committed(first)
    proxy.on("PUT", at, then(drop_reply(), agent.kill))
    second = trainer.stage(s3_env.uri, 2, frozen=FROZEN, wait_s=60)["snapshot"]
    wait_until(lambda: agent.popen.poll() is not None, what="the agent's death")
    return agent, trainer, first, second


def test_frozen_bytes_are_uploaded_once_also_by_a_new_agent(here: Machine, s3_env: S3Env) -> None:
    agent = here.agent()
    trainer = here.trainer(**s3_env.environment)
    trainer.open(s3_env.uri)
    ids = []
    for step in range(1, 5):
        if step == 4:
            agent.kill()
            agent = go_on(here, trainer, s3_env)
        ids.append(trainer.stage(s3_env.uri, step, frozen=FROZEN, wait_s=60)["snapshot"])
        trainer.wait_committed(ids[-1])
    assert trainer.call("close", uri=s3_env.uri, deadline_s=60)["acknowledged"]
    found = sizes(s3_env)
    assert sorted(found) == ids
    assert found[ids[0]] > 4 * FROZEN
    assert all(4 * NUMBERS < found[one] < 4 * NUMBERS + 500 for one in ids[1:])
    assert str(check(s3_env.uri, ids)) == ids[-1]


@pytest.mark.fault(2)
@pytest.mark.fault(35)
def test_a_manifest_that_landed_unheard_is_put_again_and_its_bytes_stay(here: Machine, s3_env: S3Env) -> None:
    """The next agent could not choose the same tensors to send: the parent's table is gone."""
    with Proxy(s3_env.url) as proxy:
        _, trainer, first, second = dead_amid_the_second(here, s3_env, proxy, at="/snapshots/")
        lose_the_part(s3_env, first)
        before = [etag(s3_env, second, name) for name in ("safetensors", "json")]
        go_on(here, trainer, s3_env)
        reply = trainer.call("close", uri=s3_env.uri, deadline_s=60)
        assert (reply["committed"], reply["acknowledged"]) == (second, True)
        assert [etag(s3_env, second, name) for name in ("safetensors", "json")] == before
        assert str(check(s3_env.uri, [second], damaged=[first])) == second


@pytest.mark.fault(6)
def test_a_parent_that_the_new_agent_cannot_read_costs_bytes_only(here: Machine, s3_env: S3Env) -> None:
    """The first agent died before there was a manifest: other bytes under the same keys harm nobody."""
    with Proxy(s3_env.url) as proxy:
        agent, trainer, first, second = dead_amid_the_second(here, s3_env, proxy, at=r"/packs/.*\.json")
        assert sizes(s3_env)[second] < 4 * NUMBERS + 500
        lose_the_part(s3_env, first)
        go_on(here, trainer, s3_env)
        reply = trainer.call("close", uri=s3_env.uri, deadline_s=60)
        assert (reply["committed"], reply["acknowledged"]) == (second, True)
        assert sizes(s3_env)[second] > 4 * FROZEN
        assert "all of the next snapshot is uploaded" in agent.log_text
        assert str(check(s3_env.uri, [second], damaged=[first])) == second


@pytest.mark.fault(66)
def test_a_pack_of_the_parent_that_is_gone_is_uploaded_again(here: Machine, s3_env: S3Env) -> None:
    agent = here.agent()
    trainer = here.trainer(**s3_env.environment)
    trainer.open(s3_env.uri)
    first = trainer.stage(s3_env.uri, 1, frozen=FROZEN)["snapshot"]
    trainer.wait_committed(first)
    s3_env.client.delete_object(Bucket=s3_env.bucket, Key=f"run/packs/{first}/rank-00000.safetensors")
    second = trainer.stage(s3_env.uri, 2, frozen=FROZEN, wait_s=60)["snapshot"]
    trainer.wait_committed(second)
    assert trainer.call("close", uri=s3_env.uri, deadline_s=60)["acknowledged"]
    assert f"packs/{first}/rank-00000.safetensors is not there any more" in agent.log_text
    assert str(check(s3_env.uri, [second], damaged=[first])) == second
