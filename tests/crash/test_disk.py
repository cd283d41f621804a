"""A run in a directory whose disk fails, or whose machine loses its power."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spotckpt.errors import SnapshotError, StoreError
from spotckpt.store import durable, local
from spotckpt.store.local import LocalStore
from tests.crash.conftest import NewRun
from tests.crash.test_planted import expect_caught
from tests.crash.test_prune import age, pruned
from tests.crash.world import Actor, World, recover
from tests.support.checker import Violation, check
from tests.support.disk import Disk, Loss
from tests.support.faulty_store import Crash

LOSSES = list(Loss)


def live(world: World) -> BaseException | None:
    """A life, a second one, and a pruning: every kind of write there is."""
    error = Actor(world).live(saves=2)
    if error is None:
        error = Actor(world).live(saves=2)
    if error is None:
        age(world.root, 7200)
        try:
            pruned(world)
        except (Crash, StoreError) as stopped:
            return stopped
    return error


def after(world: World, disk: Disk, new_run: NewRun, loss: Loss) -> World:
    """The same run on the machine that boots again."""
    root = disk.after_power_loss(new_run(), loss)
    return World(root, acknowledged=list(world.acknowledged), winners=[], dead=set(world.dead))


def played(new_run: NewRun, loss: Loss, scene: Callable[[World], BaseException | None] = live, **fault: object) -> Disk:
    """A scene on a faulty disk; then the power goes, and the run must go on."""
    world = World(new_run())
    world.root.mkdir()
    disk = Disk(world.root, **fault)  # type: ignore[arg-type]
    with disk.mounted():
        error = scene(world)
    if isinstance(error, StoreError) and disk.failed:
        assert "Input/output error" in str(error) and str(world.root) in error.key
        world.check()
    assert error is None or isinstance(error, (Crash, StoreError)), error
    assert not list(world.root.rglob(".tmp-*")) or isinstance(error, Crash), "what could not be written is thrown away"
    booted = after(world, disk, new_run, loss)
    try:
        booted.check()
        recover(booted)
    except (AssertionError, SnapshotError) as violation:
        raise Violation(f"{fault}, then {loss.value} is lost: {violation}") from violation
    shutil.rmtree(world.root)
    shutil.rmtree(booted.root)
    return disk


@pytest.mark.fault(21)
def test_power_goes_before_any_call(new_run: NewRun) -> None:
    number = 1
    while played(new_run, LOSSES[number % 4], cut_before=number).calls >= number:
        number += 1
    assert number > 200


@pytest.mark.fault(16)
@pytest.mark.fault(17)
@pytest.mark.fault(18)
@pytest.mark.parametrize("kind", ["write", "fsync", "fsync of a directory"])
def test_an_io_error_at_any_call(new_run: NewRun, kind: str) -> None:
    """What failed is told or done anew; what was acknowledged lasts when the power goes afterwards."""
    number = 1
    while played(new_run, LOSSES[number % 2], fails=kind, at=number).failed:
        number += 1
    assert number > 20


@pytest.mark.fault(17)
@pytest.mark.fault(18)
@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace to make the kernel answer EIO")
@pytest.mark.parametrize("number", [8, 9])
def test_the_kernel_itself_says_io_error(tmp_path: Path, number: int) -> None:
    """Of a file's fsync, and of its directory's."""
    inject = ["-e", "trace=fsync", "-e", f"inject=fsync:error=EIO:when={number}"]
    command = ["strace", "-f", "-y", "-qq", "-o", str(tmp_path / "log"), *inject]
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.crash.life", f"file://{tmp_path}/run", "2"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if not (tmp_path / "log").exists() or "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr[-200:]}")
    acknowledged = done.stdout.split()
    (injected,) = [line for line in (tmp_path / "log").read_text().splitlines() if "(INJECTED)" in line]
    assert (".tmp-" in injected) == (number == 8), injected
    if number == 8:
        assert done.returncode == 1 and "Input/output error" in done.stderr
        assert f"{tmp_path}/run/" in done.stderr
    else:
        assert (done.returncode, len(acknowledged)) == (0, 2), "it was written anew"
    check(f"file://{tmp_path}/run", acknowledged)
    assert not list(tmp_path.rglob(".tmp-*"))


# planted bugs


def everywhere(new_run: NewRun, fails: str = "") -> Callable[[], object]:
    """A power loss from the end on, where the pruning is; an error from the beginning on."""

    def scenario() -> None:
        num_calls = played(new_run, Loss.ALL).calls
        for number in range(1, num_calls):
            fault = {"fails": fails, "at": number} if fails else {"cut_before": num_calls - number}
            for loss in LOSSES:
                played(new_run, loss, **fault)

    return scenario


def test_planted_names_not_synced(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (durable, local):
        monkeypatch.setattr(module, "sync_directory", lambda directory: None)
    expect_caught(everywhere(new_run), "I1: .* was acknowledged|I2/I3: .* committed and not whole")


def test_planted_a_name_found_is_trusted(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sync had failed; the second try finds it there."""
    monkeypatch.setattr(LocalStore, "settle", lambda *args, **options: None)
    expect_caught(
        everywhere(new_run, fails="fsync of a directory"),
        "I1: .* acknowledged|without (a gap|having recorded)|run.json is missing",
    )


def test_planted_deleted_in_any_order(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs may be gone for good before the manifest is."""

    def unlinks(self: LocalStore, keys: list[str], **options: object) -> None:
        for key in keys:
            (self.root / key).unlink(missing_ok=True)

    monkeypatch.setattr(LocalStore, "delete", unlinks)
    expect_caught(everywhere(new_run), "committed and not whole")
