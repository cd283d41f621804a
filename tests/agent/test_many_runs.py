"""Several runs of one user on one agent: the line, the spool, and a trainer that is stuck."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket

from spotckpt.agent import protocol
from spotckpt.agent.processes import boot_id, start_time
from tests.agent.harness import Machine, Trainer
from tests.support.proxy import Proxy, stall
from tests.support.servers import S3Env, wait_until

SLOT = 4 << 20


def uris(s3_env: S3Env, count: int) -> list[str]:
    return [f"s3://{s3_env.bucket}/run{number}" for number in range(count)]


def sent(proxy: Proxy, uri: str) -> int:
    """Bytes of packs that have passed for a run."""
    place = f"/{uri.removeprefix('s3://')}/packs/"
    return sum(seen.body_bytes for seen in list(proxy.seen) if seen.method == "PUT" and place in seen.path)


def test_runs_that_upload_at_once_share_the_limit(here: Machine, s3_env: S3Env) -> None:
    """One sends parts of its snapshot at once, the other a single request."""
    numbers = (5_000_000, 400_000)
    with Proxy(s3_env.url) as proxy:
        here.agent("--upload-limit=1MB/s")
        many, single = uris(s3_env, 2)
        for uri, count in zip((many, single), numbers, strict=True):
            trainer = here.trainer(**s3_env.behind(proxy.url).environment)
            trainer.open(uri)
            slot = trainer.call("slot", uri=uri, size_bytes=4 * count, step=1, wait_s=60)
            trainer.reply(trainer.start("fill", slot=slot, step=1, numbers=count))
            trainer.call("sealed", uri=uri, generation=slot["generation"])
        wait_until(lambda: sent(proxy, many) and sent(proxy, single), what="both uploads")
        before = [sent(proxy, uri) for uri in (many, single)]
        wait_until(lambda: sent(proxy, single) >= 0.9 * 4 * numbers[1], what="the shorter upload")
        shares = [sent(proxy, uri) - was for uri, was in zip((many, single), before, strict=True)]
        assert 0.5 < shares[0] / shares[1] < 2.0, shares


def test_the_quota_of_the_spool_leaves_each_run_a_slot(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url) as proxy:
        here.agent("--spool-quota=16MiB")
        ended, *rest = uris(s3_env, 5)
        trainers = {uri: here.trainer(**s3_env.behind(proxy.url).environment) for uri in (ended, *rest)}
        trainers[ended].open(ended)
        trainers[ended].stage(ended, 1)
        trainers[ended].call("close", uri=ended, deadline_s=60)  # its slot stays, for its next attempt
        proxy.on("PUT", "/packs/", stall(), times=10)
        first, second, third, fourth = rest
        for uri in rest:
            trainers[uri].open(uri)
        taken = [trainers[first].stage(first, step, reason="manual") for step in range(1, 4)]
        assert [bool(reply.get("busy")) for reply in taken] == [False, False, True]
        assert f"quota of {4 * SLOT} (SPOTCKPT_SPOOL_QUOTA)" in str(trainers[first].events("warning"))
        for uri in (second, third):  # the last of which takes what is only kept
            assert "snapshot" in trainers[uri].stage(uri, 1)
        refused = trainers[fourth].answer(trainers[fourth].start("stage", uri=fourth, step=1))
        assert refused["error"] == "SpoolError"
        assert f"{4 * SLOT} bytes of the quota of {4 * SLOT}" in refused["message"]
        assert [len(run["slots"]) for run in sorted(here.runs(), key=lambda run: run["uri"])] == [2, 1, 1, 0]


class Stuck:
    """A trainer that has opened a run, stops in the middle of a message and never reads what it is told."""

    def __init__(self, here: Machine, uri: str) -> None:
        self.connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connected.connect(str(here.runtime / "agent.sock"))
        pid = os.getpid()
        hello = {"version": protocol.VERSION, "pid": pid, "start_time": start_time(pid), "boot_id": boot_id()}
        with self.connected.makefile("rb") as stream:
            for op, fields in (("hello", hello), ("open", {"uri": uri, "selector": "", "settings": {}})):
                self.connected.sendall(protocol.encode({"op": op, "call": 1, **fields}))
                while "reply" not in (reply := json.loads(stream.readline())):
                    pass
                assert reply["ok"], reply

    def stop_reading(self) -> None:
        """Asks for more than it takes, until the agent has no place for its answers, and half of one thing more."""
        self.connected.setblocking(False)
        status = protocol.encode({"op": "status", "call": 2})
        quiet = 0
        while quiet < 5:
            with contextlib.suppress(BlockingIOError):
                self.connected.send(status + status[:10])
                quiet = 0
                continue
            quiet += 1
            select.select([], [], [], 0.02)

    @property
    def is_hung_up_on(self) -> bool:
        poll = select.poll()
        poll.register(self.connected, select.POLLRDHUP)
        return bool(poll.poll(0))


def test_a_trainer_that_is_stuck_holds_up_no_other(here: Machine, s3_env: S3Env) -> None:
    here.agent()
    stuck_uri, uri = uris(s3_env, 2)
    stuck = Stuck(here, stuck_uri)
    with stuck.connected:
        trainer: Trainer = here.trainer(**s3_env.environment)
        trainer.open(uri)
        with here.client() as client:
            stuck.stop_reading()
            client.call("notify", timeout=60, action="terminate", in_s=60)
        trainer.wait_event("notice")
        assert not stuck.is_hung_up_on, "the other one was told only after the stuck one had been given up"
        staged = trainer.stage(uri, 1)["snapshot"]
        trainer.wait_committed(staged)
        assert sorted(run["uri"] for run in here.runs()) == sorted([stuck_uri, uri])
