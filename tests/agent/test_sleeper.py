"""A machine that sleeps for days in the middle of a save: what it had sent may have been swept when it wakes."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from spotckpt.agent.commons import Commons
from spotckpt.agent.lending import Lender
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.processes import boot_id, pid_namespace
from spotckpt.agent.sending import Sender, UnreadableSlot
from spotckpt.agent.slots import Mappings, Slot
from spotckpt.agent.spool import RunSpool, Spool
from spotckpt.agent.spool_slot import SpoolSlot
from spotckpt.agent.token import Token
from spotckpt.deadline import Deadline
from spotckpt.errors import SpoolError, Unavailable
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.store.base import Store
from tests.agent.fake_trainer import describe
from tests.snapshot.bucket import FakeClock, Wrapped, begin, local_store
from tests.support.checker import check

NUMBERS = 1000
DAY = 86400.0


class Sleepy(Wrapped):
    """The machine sleeps for three days when this store is first asked to do that."""

    def __init__(self, inner: Store, clock: FakeClock, *, at: str) -> None:
        super().__init__(inner)
        self.clock = clock
        self.at = at

    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        self._sleep("create", key)
        if deadline is not None and deadline.passed:
            raise Unavailable("create", key, "its deadline has passed")
        super().create(key, data, deadline=deadline)
        self._sleep("created", key)

    def put(self, key: str, data, **options):
        self._sleep("put", key)
        return super().put(key, data, **{**options, "deadline": None})

    def _sleep(self, verb: str, key: str) -> None:
        if self.at and f"{verb} {key}".startswith(self.at):
            self.at = ""
            self.clock.time += 3 * DAY
            if verb == "created":
                raise Unavailable("create", key, "the connection is gone")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    begin(local_store(tmp_path / "run"), 1)
    return tmp_path / "run"


@pytest.fixture
def run(tmp_path: Path, root: Path) -> RunSpool:
    (tmp_path / "spool").mkdir()
    token = Token(f"file://{root}", "r" * 16, 1, "n", 0, 1, 1, boot_id(), pid_namespace(), 2.0, 10.0, based=True)
    return Spool(tmp_path / "spool", tmp_path / "disk").create(token)


def seal(run: RunSpool, step: int, *, seals: bool = True) -> SpoolSlot:
    run.reclaim = lambda: None  # type: ignore[method-assign]  # here several are granted at once
    options = AgentOptions(reserve_bytes=0)
    commons = Commons(options, slots=list, make_room=lambda: None)
    lender = Lender(run, options, threading.Condition(), print, commons)
    slot = lender.lend(4 * NUMBERS, step=step, deadline=Deadline.after(0), check=lambda: None)
    assert slot is not None and slot.grant is not None
    handle = Slot(slot.path, slot.data_path, slot.grant.generation, slot.grant.id, slot.grant.size_bytes)
    memory = Mappings().open(handle)
    memory[: 4 * NUMBERS] = np.full(NUMBERS, step, np.float32).tobytes()
    memory.release()
    if seals:
        handle.seal(describe(handle.id, step, NUMBERS))
    return slot


def sender(run: RunSpool, store: Store, clock: FakeClock, *, left: bool = False) -> Sender:
    return Sender(
        run,
        store,
        require_ours=lambda: None,
        rename=lambda slot: run.rename(slot, left=left),
        slowest=None,
        clock=clock,
    )


@pytest.mark.parametrize("at", ["put packs/", "create snapshots/", "created snapshots/"])
def test_a_sleeper_that_wakes_after_three_days_sends_it_again_under_a_new_id(
    run: RunSpool, root: Path, at: str
) -> None:
    clock = FakeClock()
    clock.time = 0.0
    slot = seal(run, 3)
    found = slot.seal()
    assert found is not None
    sleepy = Sleepy(local_store(root), clock, at=at)
    with pytest.raises((SpoolError, Unavailable)):
        sender(run, sleepy, clock).send(slot, found)
    landed = (root / f"snapshots/{found.id}.json").exists()
    assert landed == at.startswith("created")
    # the next agent finds what this one has sent, and when that began
    (again,) = RunSpool(run.path, run.path / "disk", run.token).slots
    committed = sender(run, sleepy, clock).send(again, found)
    assert committed != found.id
    assert SnapshotId.parse(committed).sequence > SnapshotId.parse(found.id).sequence
    assert SnapshotId.parse(committed).step == 3
    assert {path.stem for path in (root / "snapshots").iterdir()} == {committed, *([found.id] if landed else [])}
    assert str(check(f"file://{root}", [committed])) == committed
    run.update(last_committed=committed)
    assert run.drop_older(SnapshotId.parse(committed)) == [found.id], "its slot is free"


def old(run: RunSpool, root: Path, clock: FakeClock, step: int) -> SpoolSlot:
    slot = seal(run, step)
    found = slot.seal()
    assert found is not None
    with pytest.raises(Unavailable):
        sender(run, Sleepy(local_store(root), clock, at="create snapshots/"), clock).send(slot, found)
    return slot


def test_it_gives_way_to_a_newer_one_and_never_gets_a_number_above_it(run: RunSpool, root: Path) -> None:
    clock = FakeClock()
    clock.time = 0.0
    slot = old(run, root, clock, 3)
    found = slot.seal()
    assert found is not None
    staging = seal(run, 4, seals=False)
    assert staging.grant is not None
    with pytest.raises(SpoolError, match="waits for what is being staged"):
        sender(run, local_store(root), clock).send(slot, found)
    handle = Slot(staging.path, staging.data_path, staging.grant.generation, staging.grant.id, 4 * NUMBERS)
    handle.seal(describe(handle.id, 4, NUMBERS))
    with pytest.raises(UnreadableSlot, match="a newer snapshot is sent in its place"):
        sender(run, local_store(root), clock).send(slot, found)


def test_what_a_dead_trainer_was_staging_does_not_hold_it_up(run: RunSpool, root: Path) -> None:
    clock = FakeClock()
    clock.time = 0.0
    slot = old(run, root, clock, 3)
    found = slot.seal()
    assert found is not None
    seal(run, 4, seals=False)
    committed = sender(run, local_store(root), clock, left=True).send(slot, found)
    assert str(check(f"file://{root}", [committed])) == committed
