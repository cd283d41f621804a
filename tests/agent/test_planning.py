"""A notice's plan, from a real agent to a trainer that does as it is told."""

from __future__ import annotations

import re

from spotckpt.agent.pace import PACE_NAME, PaceWriter
from spotckpt.deadline import SYSTEM_CLOCK
from tests.agent.harness import Machine
from tests.support.checker import check
from tests.support.proxy import Proxy, answer
from tests.support.servers import S3Env, wait_until

LINE_BYTES_PER_S = 5e6
NUMBERS = 4_500_000  # 18 MB: in parts, and three and a half seconds


def test_an_upload_begun_for_want_of_a_boundary_gives_way_and_leaves_nothing(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=LINE_BYTES_PER_S) as proxy:
        agent = here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri, settings={"upload_every_s": 3600.0})
        first = trainer.stage(s3_env.uri, 1, numbers=500_000)["snapshot"]
        trainer.wait_committed(first)
        trainer.call("prepare", uri=s3_env.uri, size_bytes=4 * NUMBERS)  # what comes shall be staged at once
        sealed = trainer.stage(s3_env.uri, 2, numbers=NUMBERS)["snapshot"]
        trainer.call("notify", action="terminate", in_s=25)
        assert trainer.wait_event("notice")["plan"] == "snapshot"
        proxy.wait_for("PUT", r"packs/.*partNumber=1")
        newer = trainer.stage(s3_env.uri, 3, numbers=NUMBERS)["snapshot"]
        trainer.wait_committed(newer)
        assert [event["id"] for event in trainer.events("committed")] == [first, newer]
        assert f"{sealed} is given up for a newer snapshot" in agent.log_text
        # and now the last one, as late as is safe
        last = trainer.wait_event("plan", lambda event: event["plan"] in ("last", "stop"))
        assert last["plan"] == "last" and last["seconds_left"] < 25
        trainer.stage(s3_env.uri, 4, numbers=NUMBERS, reason="notice")
        committed = trainer.call("close", uri=s3_env.uri, deadline_s=60)["committed"]
    assert committed.split("-")[2] == "s00000004"
    assert str(check(s3_env.uri, [committed])) == committed
    assert not s3_env.uploads()
    decisions = re.findall(r"attempt 1 of \S+: (\w+): manual terminate in \d+ s: (.*)", agent.log_text)
    assert next(plan for plan, _ in decisions) == "snapshot"
    assert all("18.0 MB at" in why and "reserve 10 s" in why for _, why in decisions)


def test_a_training_that_has_not_begun_is_told_to_stop(here: Machine, uri: str) -> None:
    here.agent()
    trainer = here.trainer()
    trainer.reply(trainer.start_open(uri))
    trainer.call("notify", action="terminate", in_s=60)
    assert trainer.wait_event("notice")["plan"] == "stop"


def test_an_agent_that_comes_back_under_a_notice_plans_anew(here: Machine, uri: str) -> None:
    agent = here.agent()
    trainer = here.trainer()
    trainer.open(uri)
    trainer.call("notify", action="terminate", in_s=60)
    assert trainer.wait_event("notice")["plan"] == "snapshot"
    agent.kill()
    here.agent()
    wait_until(here.runs, what="the attempt, taken over")
    notice = trainer.reply(trainer.start("connect"))["notice"]
    assert (notice["final"], notice["plan"]) == (True, "last"), "nobody would tell it when"


def test_what_is_sealed_waits_for_a_boundary_that_comes(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=LINE_BYTES_PER_S) as proxy:
        here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri, settings={"upload_every_s": 3600.0})
        first = trainer.stage(s3_env.uri, 1, numbers=1_500_000)["snapshot"]
        trainer.wait_committed(first)
        sealed = trainer.stage(s3_env.uri, 2, numbers=NUMBERS)["snapshot"]
        [token] = here.tokens()
        ago_s = [3.0, 0.0, 0.0]  # the next one is in sight for long enough, and comes before an upload would end
        steps = PaceWriter(token.parent / PACE_NAME, now=lambda: SYSTEM_CLOCK.now() - ago_s.pop(0))
        for step in (1, 2):
            steps.boundary(step)
        trainer.call("notify", action="terminate", in_s=60)
        assert "what is sealed waits for the boundary" in trainer.wait_event("notice")["why"]
        steps.boundary(3)
        newer = trainer.stage(s3_env.uri, 3, numbers=NUMBERS)["snapshot"]
        trainer.wait_committed(newer)
        assert [event["id"] for event in trainer.events("committed")] == [first, newer]
        assert not any(sealed in seen.path for seen in proxy.seen), "it was in the way of the newer one"


def test_while_the_machine_goes_a_store_in_trouble_is_tried_again_and_again(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url) as proxy:
        agent = here.agent()
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri)
        proxy.on("*", r"/packs/", answer(403), times=6)
        trainer.call("notify", action="terminate", in_s=60)
        staged = trainer.stage(s3_env.uri, 1)["snapshot"]
        trainer.wait_committed(staged)
        assert "trying again" in agent.log_text
