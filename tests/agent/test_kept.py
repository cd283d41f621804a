"""What an agent keeps of an attempt that ended, and how long. With a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from spotckpt.agent.agent import KEPT_S, Agent
from spotckpt.agent.run import Run
from spotckpt.agent.slots import Mappings, Slot
from spotckpt.agent.spool_slot import SpoolSlot
from spotckpt.snapshot.records import Base
from spotckpt.snapshot.staged import Staged
from tests.agent.inside import Turned, agent_of, attempt
from tests.support.servers import wait_until


@pytest.fixture
def clock() -> Turned:
    return Turned()


@pytest.fixture
def agent(tmp_path: Path, clock: Turned) -> Agent:
    return agent_of(tmp_path, clock)


def sealed(run: Run, step: int, *, reason: str = "manual") -> str:
    """Stages a snapshot without tensors, and waits until it is committed."""
    granted = run.lend(4096, step=step, wait_s=60)
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


def ended(agent: Agent, run: Run) -> None:
    run.leave()
    wait_until(lambda: agent.run_of(run.uri) is None, what="the end")


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
    ended(agent, run)
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
    ended(agent, first)
    second = attempt(agent, uri, 2, None)
    lies = second.where(newest)
    assert lies is not None and second.where("a0001-n000009-s00000009-00000000") is None
    second.write_base(Base(2, newest, "newest", (), ()))
    assert second.where(newest) is None
    assert sealed(second, 2) != newest
    agent.forget_kept(all=True)
    assert lies.path.exists(), "it is the new attempt's now"
    ended(agent, second)


def test_an_attempt_without_a_base_leaves_it_to_the_one_after(agent: Agent, uri: str) -> None:
    first = attempt(agent, uri, 1, "")
    newest = sealed(first, 1)
    for number in (2, 3):
        ended(agent, first)
        first = attempt(agent, uri, number, None)
        assert first.where(newest) is not None
    ended(agent, first)


def test_what_cannot_be_cleared_away_is_said_and_ends_nothing(
    agent: Agent, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = attempt(agent, uri, 1, "")
    sealed(run, 1)
    ended(agent, run)
    (kept,) = (tmp_path / "spool").glob("*/slot-*")
    (kept.parent / "token.json").mkdir()
    agent.forget_kept(all=True)
    assert "cannot be cleared away: [Errno 21] Is a directory" in caplog.text


def test_nothing_is_kept_of_a_finished_run_or_when_the_agent_ends(agent: Agent, uri: str, gone: Gone) -> None:
    run = attempt(agent, uri, 1, "")
    sealed(run, 1, reason="final")
    ended(agent, run)
    assert gone()
    other = attempt(agent, f"{uri}2", 1, "")
    sealed(other, 1)
    ended(agent, other)
    assert not gone()
    agent.forget_kept(all=True)
    assert gone()
