"""A spool without room: full, read-only, out of inodes, cleaned away. What is sealed stays; what fails says why."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spotckpt.agent.room import is_memory
from spotckpt.agent.slots import Mappings, Slot
from spotckpt.agent.spool import Spool
from spotckpt.errors import SpoolError
from spotckpt.snapshot.staged import Staged
from tests.agent.fake_trainer import describe
from tests.support.mounts import free_bytes, remount, tmpfs
from tests.support.staging_area import StagingArea

NUMBERS = 1000
PAGE = 4096


def stage(area: StagingArea, step: int, *, padding: int = 0) -> str | None:
    """One snapshot whose numbers all are the step; its id, None if all slots are taken."""
    slot = area.slot(4 * NUMBERS, step)
    if slot is None:
        return None
    fill(slot, step, padding)
    return slot.id


def fill(slot: Slot, step: int, padding: int = 0) -> None:
    np.frombuffer(Mappings().open(slot), dtype="<f4", count=NUMBERS)[:] = step
    described = describe(slot.id, step, NUMBERS)
    slot.seal(replace(described, tree={"step": step, "padding": "x" * padding}))


def newest(area: StagingArea) -> tuple[Staged, set[float]]:
    """As the next agent finds it: the description, and the different numbers in the data."""
    for slot, seal in area.again().sealed():
        data = np.frombuffer(slot.view(seal.data_bytes), dtype="<f4")
        return slot.staged(), {float(value) for value in data}
    raise AssertionError("nothing is sealed")


@contextmanager
def limited(which: int, soft: int) -> Iterator[None]:
    """A resource limit of this process."""
    before = resource.getrlimit(which)
    resource.setrlimit(which, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs that holds two slots of 4 MiB and some more."""
    with tmpfs(tmp_path / "small", "size=10m") as mounted:
        yield mounted


@pytest.mark.fault(14)
@pytest.mark.fault(19)
def test_a_spool_that_is_full_at_any_write_keeps_what_is_sealed(small: Path) -> None:
    # The description takes several pages, so some of its writes are short before they fail.
    area = StagingArea(small / "spool", small / "spool" / "disk", slots=2)
    assert stage(area, 1) is not None
    area.prepare(4 * NUMBERS)
    filler = small / "filler"
    failed = 0
    for free_pages in range(40):
        with filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, free_bytes(small) - free_pages * PAGE)
        before = newest(area)[0].step
        step = 2 + free_pages
        try:
            done = stage(area, step, padding=5 * PAGE)
        except SpoolError as error:
            failed += 1
            assert str(small) in error.message and "No space left on device" in error.message
            assert newest(area)[0].step == before
        else:
            assert done is not None
            assert newest(area)[1] == {float(step)}
            break
        finally:
            filler.unlink()
            for slot in area.run.slots:
                if slot.grant is not None and slot.seal() is None:
                    slot.free()
    assert failed >= 5, "the spool was hardly full"
    assert newest(area)[0].step == 1 + failed + 1
    assert stage(area, 99) is not None, "it does not recover"


@pytest.mark.fault(14)
def test_in_a_full_spool_what_is_committed_makes_room_though_nothing_can_be_noted(small: Path) -> None:
    area = StagingArea(small / "spool", small / "spool" / "disk", slots=1)
    assert stage(area, 1) is not None
    ((slot, _),) = area.run.sealed()
    filler = small / "filler"
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, free_bytes(small))
    area.run.keep(slot)
    assert (slot.grant, slot.kept) == (None, None)
    filler.unlink()
    assert stage(area, 2) is not None


@pytest.mark.fault(14)
def test_a_spool_without_room_for_a_claim_is_named(small: Path) -> None:
    area = StagingArea(small / "spool", small / "disk")
    with (small / "filler").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, free_bytes(small))
    with pytest.raises(SpoolError, match=rf"{small}/spool/\w+ cannot be used: No space left on device; make room"):
        Spool(small / "spool", small / "disk").create(replace(area.run.token, uri="file:///y/run"))


@pytest.mark.fault(14)
def test_without_room_for_the_first_the_error_says_where_how_much_and_how_to_help(small: Path) -> None:
    area = StagingArea(small / "spool", small / "disk")
    with pytest.raises(SpoolError) as caught:
        area.slot(20 << 20, 1)
    text = str(caught.value)
    for part in ("20971520 bytes", "bytes are missing", f"{small}/spool/", f"{small}/disk/", "SPOTCKPT_SPOOL"):
        assert part in text, text
    assert stage(area, 1) is not None, "a smaller state finds no room either"


@pytest.mark.fault(14)
def test_room_for_two_is_told_once_and_the_third_snapshot_waits_for_none(small: Path) -> None:
    area = StagingArea(small / "spool", small / "disk")
    assert len(area.prepare(4 * NUMBERS)) == 2
    slots = [area.run.slots[0], area.run.slots[1]]
    for step, slot in enumerate(slots, 1):
        assert stage(area, step) is not None
        slot.leased = True
    for step in (3, 4):
        assert stage(area, step) is None
    (told,) = area.told
    assert "room to stage 2 snapshots only" in told and str(small) in told
    assert not area.lender.only_one


@pytest.mark.fault(15)
def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    area = StagingArea(tmp_path / "spool", tmp_path / "disk")
    with limited(resource.RLIMIT_FSIZE, 1 << 20), pytest.raises(SpoolError, match=r"File too large \(see ulimit -f\)"):
        stage(area, 1)
    assert stage(area, 2) is not None
    slot = area.slot(4 * NUMBERS, 3)
    assert slot is not None
    with limited(resource.RLIMIT_FSIZE, 512), pytest.raises(SpoolError, match="File too large"):
        fill(slot, 3, padding=PAGE)
    area.abort(slot)
    assert newest(area)[1] == {2.0}


@pytest.mark.fault(19)
def test_signals_in_the_middle_of_every_call_change_nothing(tmp_path: Path) -> None:
    area = StagingArea(tmp_path / "spool", tmp_path / "disk")
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for step in range(1, 20):
            assert stage(area, step, padding=100 * PAGE) is not None
            assert newest(area)[1] == {float(step)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) > 20


@pytest.mark.fault(20)
def test_a_spool_that_becomes_read_only_says_so_and_goes_on_when_it_is_mended(small: Path, tmp_path: Path) -> None:
    area = StagingArea(small / "spool", small / "disk")
    assert stage(area, 1) is not None
    slot = area.slot(4 * NUMBERS, 2)
    assert slot is not None
    remount(small, "ro")
    with pytest.raises(SpoolError, match=r"slot .*small/spool/.* cannot be used: Read-only file system"):
        fill(slot, 2)
    with pytest.raises(SpoolError, match=r"small/spool/\w+ cannot be used: Read-only file system"):
        area.slot(4 * NUMBERS, 3)
    assert newest(area)[1] == {1.0}
    remount(small, "rw")
    assert stage(area, 4) is not None
    assert newest(area)[1] == {4.0}


@pytest.mark.fault(20)
def test_a_spool_of_another_user_is_refused_by_name(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user takes root")
    area = StagingArea(tmp_path / "spool", tmp_path / "disk")
    os.seteuid(65534)
    try:
        with pytest.raises(SpoolError, match=r"Permission denied|belongs to uid 0") as caught:
            stage(area, 1)
    finally:
        os.seteuid(0)
    assert str(tmp_path) in caught.value.message
    assert stage(area, 2) is not None


@pytest.mark.parametrize("name", ["a blank", "gr\u00f6\u00dfe", "back\\slash"])
def test_memory_is_known_by_whatever_name_it_is_mounted(tmp_path: Path, name: str) -> None:
    assert not is_memory(tmp_path)
    with tmpfs(tmp_path / name, "size=1m") as mounted:
        assert is_memory(mounted)


@pytest.mark.fault(20)
@pytest.mark.fault(25)
def test_a_small_shared_memory_is_named_and_the_disk_of_another_device_is_used(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "shm", "size=64m") as shm:
        area = StagingArea(shm / "spool", tmp_path / "disk", slots=2)
        assert stage(area, 1) is not None
        grown = 70 << 20
        places = [data for _, data in area.prepare(grown)]
        assert all(place.is_relative_to(tmp_path / "disk") for place in places), places
        assert places[0].stat().st_dev != shm.stat().st_dev
        assert newest(area)[1] == {1.0}, "moving to the disk lost what was sealed"
        (told,) = area.told
        assert "staged on disk" in told and str(shm) in told and "bytes are free for it" in told
        slot = area.slot(grown, 2)
        assert slot is not None and slot.data_path in places
        fill(slot, 2)
        assert newest(area)[1] == {2.0}


@pytest.mark.fault(23)
def test_a_spool_that_is_cleaned_away_is_made_again(tmp_path: Path) -> None:
    area = StagingArea(tmp_path / "spool", tmp_path / "disk")
    assert stage(area, 1) is not None
    slot = area.slot(4 * NUMBERS, 2)
    assert slot is not None
    shutil.rmtree(area.run.path)
    with pytest.raises(SpoolError, match=r"slot-\d.* cannot be used: No such file or directory; do not clean"):
        fill(slot, 2)
    area.abort(slot)
    assert stage(area, 3) is not None
    assert newest(area)[1] == {3.0}
    assert area.run.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.fault(24)
def test_a_spool_without_inodes_keeps_what_is_sealed(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "spool", "size=20m", "nr_inodes=40") as spool:
        area = StagingArea(spool, spool / "disk", slots=2)
        assert stage(area, 1) is not None
        area.prepare(4 * NUMBERS)
        failed = 0
        for free_inodes in range(12):
            fillers = take_inodes(spool, free_inodes)
            before = newest(area)[0].step
            try:
                assert stage(area, 2 + free_inodes) is not None
            except SpoolError as error:
                failed += 1
                assert str(spool) in error.message and "No space left on device" in error.message
                assert newest(area)[0].step == before
            else:
                break
            finally:
                for filler in fillers:
                    filler.unlink()
                for slot in area.run.slots:
                    if slot.grant is not None and slot.seal() is None:
                        slot.free()
        assert failed >= 1
        assert newest(area)[1] == {float(2 + failed)}


def take_inodes(spool: Path, leave: int) -> list[Path]:
    """Makes empty files until only so many more can be made."""
    fillers = []
    while os.statvfs(spool).f_ffree > leave:
        fillers.append(spool / f"filler-{len(fillers)}")
        fillers[-1].touch()
    return fillers
