"""The spool without processes: grants, seals, room."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spotckpt.agent import room
from spotckpt.agent.commons import Commons
from spotckpt.agent.lending import Lender
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.processes import boot_id, pid_namespace
from spotckpt.agent.slots import Mappings, Slot
from spotckpt.agent.spool import RunSpool, Spool
from spotckpt.agent.spool_slot import Sent, SpoolSlot
from spotckpt.agent.token import Token
from spotckpt.deadline import Deadline
from spotckpt.errors import SpoolError
from spotckpt.snapshot.keys import SnapshotId, part_key
from spotckpt.snapshot.manifest import Manifest, PartRef
from tests.agent.fake_trainer import describe

_NUMBERS = 1000


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    (tmp_path / "spool").mkdir()
    return Spool(tmp_path / "spool", tmp_path / "disk")


@pytest.fixture
def run(spool: Spool) -> RunSpool:
    return spool.create(
        Token("file:///x/run", "r" * 16, 1, "n", 0, 1, 1, boot_id(), pid_namespace(), 2.0, 10.0, based=True)
    )


def _lend(
    run: RunSpool, *, step: int = 1, size: int = 4 * _NUMBERS, most: int = 3, reserve_bytes: int = 0, wait_s: float = 0
) -> SpoolSlot | None:
    return _lender(run, most=most, reserve_bytes=reserve_bytes).lend(
        size, step=step, deadline=Deadline.after(wait_s), check=lambda: None
    )


def _lender(run: RunSpool, *, most: int = 3, reserve_bytes: int = 0, tell: Callable[[str], None] = print) -> Lender:
    run.reclaim = lambda: None  # type: ignore[method-assign]  # here several are granted at once
    options = AgentOptions(slots=most, reserve_bytes=reserve_bytes)
    commons = Commons(options, slots=list, make_room=lambda: None)
    return Lender(run, options, threading.Condition(), tell, commons)


def _handle(slot: SpoolSlot | None) -> Slot:
    assert slot is not None
    assert slot.grant is not None
    grant = slot.grant
    return Slot(slot.path, Path(grant.data_path), grant.generation, grant.id, grant.size_bytes)


def _seal(slot: SpoolSlot | None, step: int = 1) -> None:
    handle = _handle(slot)
    Mappings().open(handle).release()
    handle.seal(describe(handle.id, step, _NUMBERS))


def _again(spool: Spool) -> RunSpool:
    """What the next agent would find."""
    (found,) = spool.load()
    return found


def test_ids_and_generations_are_never_given_twice(spool: Spool, run: RunSpool) -> None:
    first, second = _lend(run, step=3), _lend(run, step=4)
    assert first is not None
    first.free()
    third = _lend(_again(spool), step=5)
    handles = [_handle(slot) for slot in (second, third)]
    assert [(handle.generation, handle.id[:24]) for handle in handles] == [
        (2, "a0001-n000001-s00000004-"),
        (3, "a0001-n000002-s00000005-"),
    ]


def test_only_a_seal_of_the_present_grant_on_this_boot_with_its_description_counts(spool: Spool, run: RunSpool) -> None:
    slot = _lend(run)
    assert slot is not None
    assert slot.seal() is None
    _seal(slot)
    assert [seal.id for _, seal in run.sealed()] == [_handle(slot).id]
    assert [seal.id for _, seal in _again(spool).sealed()] == [_handle(slot).id]
    good = (slot.path / "seal.json").read_bytes()
    for wrong in (
        {"generation": 99},
        {"boot_id": "another"},
        {"id": "a0001-n000000-s00000001-00000000"},
        {"data_bytes": 1 << 40},
        {"staged_digest": "0" * 64},
        {"unknown": 1},
    ):
        (slot.path / "seal.json").write_text(json.dumps({**json.loads(good), **wrong}))
        assert _again(spool).sealed() == [], wrong
    (slot.path / "seal.json").write_bytes(good[:-5])
    assert _again(spool).sealed() == []
    (slot.path / "seal.json").write_bytes(good)
    assert len(_again(spool).sealed()) == 1


def test_a_grant_removes_the_old_seal_and_keeps_the_memory(run: RunSpool) -> None:
    mappings = Mappings()
    slot = _lend(run)
    assert slot is not None
    view = mappings.open(_handle(slot))
    inode = slot.data_path.stat().st_ino
    _seal(slot)
    mapped = view.obj
    view.release()
    slot.free()
    again = _lend(run, step=2)
    assert again is slot
    assert slot.seal() is None
    assert slot.data_path.stat().st_ino == inode
    assert mappings.open(_handle(slot)).obj is mapped
    # a state that grew: the same file, longer
    slot.free()
    grown = _lend(run, step=3, size=50 << 20)
    assert grown is slot
    assert slot.data_path.stat().st_ino == inode
    assert len(mappings.open(_handle(slot))) >= 50 << 20


def test_a_manifest_belongs_to_the_grant_under_which_it_was_kept(spool: Spool, run: RunSpool) -> None:
    slot = _lend(run)
    assert slot is not None and slot.sent() is None
    one = SnapshotId.parse(_handle(slot).id)
    manifest = Manifest(
        run_id="r" * 16,
        snapshot=one,
        parent=None,
        step=one.step,
        epoch=0,
        reason="periodic",
        created=0.0,
        committed=0.0,
        parts=(PartRef(part_key(one), 1, "0" * 64),),
        packs=(),
    )
    kept = Sent(manifest, 12.5)
    slot.keep_sent(kept)
    assert _again(spool).slots[0].sent() == kept
    slot.free()
    again = _lend(run, step=2)
    assert again is slot and slot.sent() is None
    # an agent that died while it freed the slot leaves the file; the next grant removes it
    slot.keep_sent(kept)
    assert slot.grant is not None
    slot.lend(slot.grant)
    assert slot.sent() is None


def test_three_slots_the_newest_sealed_stays_and_an_older_one_makes_room(run: RunSpool) -> None:
    slots = [_lend(run, step=step) for step in (1, 2, 3)]
    assert _lend(run, step=4) is None
    for step, slot in enumerate(slots[:2], 1):
        _seal(slot, step)
    fourth = _lend(run, step=4)
    assert fourth is slots[0]
    assert [seal.id for _, seal in run.sealed()] == [_handle(slots[1]).id]
    assert _lend(run, step=5) is None, "the newest sealed one was given away"


def test_a_leased_slot_is_never_granted_or_dropped(run: RunSpool) -> None:
    leased, newest = _lend(run, step=1, most=2), _lend(run, step=2, most=2)
    assert leased is not None
    _seal(leased, 1)
    _seal(newest, 2)
    leased.leased = True
    assert _lend(run, step=3, most=2) is None
    handle = _handle(newest)
    assert run.drop_older(SnapshotId.parse(handle.id)) == [handle.id]
    assert leased.seal() is not None


def test_without_memory_the_disk_is_used(run: RunSpool, tmp_path: Path) -> None:
    if not room.is_memory(Path("/dev/shm")):
        pytest.skip("there is no tmpfs at /dev/shm")
    with tempfile.TemporaryDirectory(prefix="spotckpt-test-", dir="/dev/shm") as parent:
        memory = Path(parent) / "run"
        memory.mkdir(mode=0o700)
        staged = RunSpool(memory, tmp_path / "disk" / "x", run.token)
        slot = _lend(staged, reserve_bytes=1 << 60)
        assert slot is not None
        assert slot.data_path.is_relative_to(tmp_path / "disk")
        _seal(slot)
        assert len(RunSpool(memory, tmp_path / "disk" / "x", run.token).sealed()) == 1
        staged.remove()
        assert not memory.exists()
        assert not list((tmp_path / "disk").rglob("*.data"))


def test_without_any_room_the_error_says_how_much_is_missing(run: RunSpool) -> None:
    with pytest.raises(SpoolError, match=r"no room to stage 1125899906842624 bytes: \d{12,} bytes are missing"):
        _lend(run, size=1 << 50, wait_s=60)
    assert list(run.path.glob("slot-*")) == []
    small = _lend(run)
    assert small is not None
    assert _lend(run, step=2, size=1 << 50) is None, "while one is in use, the trainer skips"


@pytest.mark.fault(22)
def test_what_belongs_to_no_token_is_swept_and_strangers_are_left_alone(spool: Spool, run: RunSpool) -> None:
    orphan = spool.path / ("0" * 16)
    orphan.mkdir()
    stranger = spool.path / "notes.txt"
    stranger.write_text("mine")
    misplaced = spool.path / ("1" * 16)
    misplaced.mkdir()
    (misplaced / "token.json").write_bytes((run.path / "token.json").read_bytes())
    assert [found.path for found in spool.load()] == [run.path]
    assert stranger.exists()
    assert not orphan.exists()
    assert not misplaced.exists()


def test_a_grant_of_another_boot_is_none(spool: Spool, run: RunSpool) -> None:
    slot = _lend(run)
    assert slot is not None
    assert slot.grant is not None
    _seal(slot)
    (slot.path / "grant.json").write_text(json.dumps({**vars(replace(slot.grant, boot_id="before"))}))
    assert _again(spool).sealed() == []


def test_memory_available_is_a_number_of_bytes() -> None:
    assert 0 < room.memory_available() < 1 << 50
    assert room.round_up(0) == room.round_up(1) == 4 << 20
    assert room.free_bytes(Path("/"), reserve_bytes=0) > 0
