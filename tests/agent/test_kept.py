"""What an agent keeps of an attempt that ended, and how long. With a clock that the test turns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from spotckpt.agent.agent import KEPT_S, Agent
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.processes import Process
from spotckpt.agent.run import Run
from spotckpt.agent.slots import Mappings, Slot
from spotckpt.agent.spool import Spool, SpoolSlot, Token
from spotckpt.deadline import SYSTEM_CLOCK
from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.records import Base
from spotckpt.snapshot.staged import Staged
from spotckpt.store.open import open_store
from tests.support.servers import wait_until


class Turned:
    """The system's clock, put forward."""

    ahead_s = 0.0

    def now(self) -> float:
        return SYSTEM_CLOCK.now() + self.ahead_s

    def wall(self) -> float:
        return SYSTEM_CLOCK.wall()

    def sleep(self, seconds: float) -> None:
        SYSTEM_CLOCK.sleep(seconds)


@pytest.fixture
def clock() -> Turned:
    return Turned()


@pytest.fixture
def agent(tmp_path: Path, clock: Turned) -> Agent:
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    options = AgentOptions(runtime_dir=tmp_path, spool_dir=spool, disk_dir=tmp_path / "disk", reserve_bytes=0)
    return Agent(
        Spool(spool, tmp_path / "disk"),
        options,
        first_look=threading.Event(),
        watch_process=lambda process: None,
        poke=lambda: None,
        clock=clock,
    )


def attempt(agent: Agent, uri: str, number: int, base: str | None) -> Run:
    """An open attempt, with its base recorded or not."""
    store = open_store(uri)
    me = Process.current()
    holder = agent.holder(me)
    token = Token(
        uri=uri,
        run_id=ensure_run(store).run_id,
        attempt=number,
        nonce="n",
        highest=number - 1,
        trainer_pid=me.pid,
        trainer_start=me.start,
        boot_id=holder.boot_id,
        pid_namespace=holder.pid_namespace,
        stale_after_s=60.0,
        call_timeout_s=10.0,
    )
    run = agent.add_run(token, me, None, holder)
    if base is not None:
        run.write_base(Base(number, base or None, "newest", (), ()))
    return run


def sealed(run: Run, step: int, *, reason: str = "manual") -> str:
    """Stages a snapshot without tensors, and waits until it is committed."""
    granted = run.lend(4096, step=step, wait_s=5.0)
    assert granted is not None and granted.grant is not None
    slot = Slot(granted.path, granted.data_path, granted.grant.generation, granted.grant.id, granted.grant.size_bytes)
    Mappings().open(slot)[:8] = b"\0" * 8
    staged = Staged(
        id=slot.id,
        step=step,
        epoch=0,
        reason=reason,
        created=1.0,
        tree={"objects": {}, "run": {}},
        specs=(),
        data_bytes=0,
        finished=reason == "final",
    )
    slot.seal(staged)
    run.sealed(slot.generation)
    wait_until(lambda: run.token.last_committed == slot.id, what="the commit")
    wait_until(lambda: granted.grant is None, what="the slot")
    return slot.id


def ended(run: Run) -> None:
    run.leave()
    wait_until(lambda: run.ended, what="the end")


def slots(agent: Agent, tmp_path: Path) -> list[SpoolSlot]:
    return [SpoolSlot(path, tmp_path / "disk") for path in (tmp_path / "spool").glob("*/slot-*")]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket/run"


Gone = Callable[[], bool]


@pytest.fixture
def gone(tmp_path: Path) -> Gone:
    return lambda: not list((tmp_path / "spool").glob("*/slot-*"))


def test_the_newest_committed_snapshot_stays_for_ten_minutes(
    agent: Agent, clock: Turned, uri: str, tmp_path: Path, gone: Gone
) -> None:
    run = attempt(agent, uri, 1, "")
    sealed(run, 1)
    newest = sealed(run, 2)
    ended(run)
    wait_until(lambda: agent.run_of(uri) is None, what="the agent to know")
    (slot,) = slots(agent, tmp_path)
    assert slot.kept is not None and slot.kept.id == newest
    clock.ahead_s = KEPT_S - 60
    agent.forget_kept()
    assert not gone()
    clock.ahead_s = KEPT_S + 60
    agent.forget_kept()
    assert gone()


def test_the_next_attempt_is_told_where_it_lies_until_its_base_is_recorded(agent: Agent, uri: str) -> None:
    first = attempt(agent, uri, 1, "")
    newest = sealed(first, 1)
    assert first.where(newest) is None, "it may be written over at any time"
    ended(first)
    wait_until(lambda: agent.run_of(uri) is None, what="the agent to know")
    second = attempt(agent, uri, 2, None)
    lies = second.where(newest)
    assert lies is not None and second.where("a0001-n000009-s00000009-00000000") is None
    second.write_base(Base(2, newest, "newest", (), ()))
    assert second.where(newest) is None
    assert sealed(second, 2) != newest
    agent.forget_kept(all=True)
    assert lies.path.exists(), "it is the new attempt's now"
    ended(second)


def test_an_attempt_without_a_base_leaves_it_to_the_one_after(agent: Agent, uri: str) -> None:
    first = attempt(agent, uri, 1, "")
    newest = sealed(first, 1)
    for number in (2, 3):
        ended(first)
        wait_until(lambda: agent.run_of(uri) is None, what="the agent to know")
        first = attempt(agent, uri, number, None)
        assert first.where(newest) is not None
    ended(first)


def test_nothing_is_kept_of_a_finished_run_or_when_the_agent_ends(agent: Agent, uri: str, gone: Gone) -> None:
    run = attempt(agent, uri, 1, "")
    sealed(run, 1, reason="final")
    ended(run)
    wait_until(lambda: agent.run_of(uri) is None, what="the agent to know")
    assert gone()
    other = attempt(agent, f"{uri}2", 1, "")
    sealed(other, 1)
    ended(other)
    wait_until(lambda: agent.run_of(f"{uri}2") is None, what="the agent to know")
    assert not gone()
    agent.forget_kept(all=True)
    assert gone()
