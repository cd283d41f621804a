"""Forking, cut at every operation, and beside a pruning of the run that is forked, which is cut at every operation."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spotckpt.errors import AlreadyExists, NothingRestorable, SnapshotError, StoreError
from spotckpt.snapshot import fork as forking
from spotckpt.snapshot import prune as pruning_of
from spotckpt.snapshot.catalog import read_catalog, read_run
from spotckpt.snapshot.fork import Fork, fork
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.open import WithAncestors
from spotckpt.snapshot.pins import pin, read_pins
from spotckpt.store.base import Store
from spotckpt.store.local import LocalStore
from tests.crash.conftest import NewRun
from tests.crash.schedule import run
from tests.crash.test_interleavings import SEED
from tests.crash.test_prune import age, is_shared, pruned, two_lives
from tests.crash.world import RAW, Actor, Past, World, recover
from tests.support.checker import Bucket, Id, check, is_whole
from tests.support.faulty_store import Crash, Faults, FaultyStore, Gate, Kind, enumerate_faults, no_gate


def opened(root: Path, faults: Faults | None = None, *, gate: Gate = no_gate) -> WithAncestors:
    """A run's store as one process has it."""

    def open_(uri: str) -> Store:
        inner = LocalStore(uri.removeprefix("file://"))
        return inner if faults is None else FaultyStore(inner, faults, gate=gate)

    return WithAncestors(open_(f"file://{root}"), open_)


def forked(
    source: Path, snapshot: str, to: Path, faults: Faults | None = None, *, copy: bool = False, gate: Gate = no_gate
) -> Fork:
    """A fork made by a process of its own."""
    faults = faults or Faults()
    store = opened(to, faults, gate=gate)
    return fork(opened(source, faults, gate=gate), SnapshotId.parse(snapshot), store, copy=copy)


def world_of(root: Path, made: Fork) -> World:
    """The fork, to be trained and judged."""
    world = World(root, RAW, inner=opened(root))
    world.acknowledged.append(str(made.record.forked_as))
    return world


def is_complete(root: Path) -> bool:
    """Whether there is a run for readers; what there is of an incomplete one is refused."""
    try:
        found = read_catalog(opened(root))
    except NothingRestorable as error:
        assert "was not completed" in error.message
        assert not (root / "attempts/0001.json").exists()
        return False
    return found.run is not None


@pytest.mark.parametrize("copy", [False, True], ids=["shared", "copied"])
@pytest.mark.parametrize("kind", [Kind.DIE_BEFORE, Kind.DIE_AFTER, Kind.LOST_REPLY], ids=lambda kind: kind.name)
def test_cut_at_every_operation_and_repeated(new_run: NewRun, kind: Kind, *, copy: bool) -> None:
    past = Past(new_run, two_lives)
    wanted = past.template.acknowledged[2]

    def scenario(faults: Faults) -> None:
        parent, to = past(), new_run()
        try:
            made = forked(parent.root, wanted, to, faults, copy=copy)
        except (Crash, SnapshotError, StoreError):
            assert faults.fired
            if is_complete(to):
                with pytest.raises(AlreadyExists, match="there is a run already"):
                    forked(parent.root, wanted, to, copy=copy)
                made = Fork(read_run(opened(to)), None)  # type: ignore[arg-type]
            else:
                there = list(to.glob("packs/*/rank-*.safetensors"))
                again = Faults()
                made = forked(parent.root, wanted, to, again, copy=copy)
                moved = [
                    one for one in again.trace if one.startswith(("put", "read")) and one.endswith("0.safetensors")
                ]
                assert not there or not moved, "what was copied wholly is not copied again"
        pins = read_pins(LocalStore(str(parent.root)))
        mine = [name for name, one in pins.items() if one.fork == f"file://{to}"]
        assert mine == ([] if copy else [f"fork-{made.record.run_id}"])
        world = world_of(to, made)
        assert str(recover(world).restored) == made.record.forked_as
        parent.check()
        for root in (parent.root, to):
            shutil.rmtree(root)

    fired = enumerate_faults(kind, scenario)
    verbs = {one.split()[0] for one in fired}
    assert verbs >= {"create", "put", *(("read", "stat", "list") if kind is Kind.DIE_BEFORE else ())}


class HalfDeletes(Faults):
    """A death in a deletion leaves half of the keys; all else is there wholly or not at all."""

    def call(self, verb: str, key: str, act: Callable[[], Any], tear: Callable[[], object] | None = None) -> Any:
        return super().call(verb, key, act, tear if verb == "delete" else None)


class Beside:
    """A fork and a pruning that dies at one of its operations, in a given order."""

    def __init__(self, new_run: NewRun, make: Callable[..., Fork] = forked) -> None:
        self.new_run = new_run
        self.make = make
        self.past = Past(new_run, two_lives)
        self.completed = self.failed = 0
        self.died = True

    def __call__(self, at: int, kind: Kind, first: int, switches: tuple[int, ...]) -> int:
        parent, to = self.past(), self.new_run()
        root = parent.root
        wanted = parent.acknowledged[2]  # uses a pack of a snapshot that goes, and that no other uses
        made: list[Fork] = []

        def forks(gate: Gate) -> None:
            try:
                made.append(self.make(root, wanted, to, gate=gate))
            except (SnapshotError, StoreError):
                self.failed += 1

        faults = HalfDeletes(kind, at, tears=True)

        def prunes(gate: Gate) -> None:
            with contextlib.suppress(Crash, SnapshotError, StoreError):
                pruned(parent, faults, gate=gate, protocol=RAW)

        try:
            num_steps = run((forks, prunes), first=first, switches=switches, shared=is_shared)
            self.died = faults.fired
            for _ in range(2):  # as it was left, and when another pruning is through
                if made:
                    self.completed += 1
                    check(f"file://{to}", [str(made[0].record.forked_as)])
                pruned(parent)
            parent.check()
        except AssertionError as error:
            raise AssertionError(f"{kind} {at}, first={first}, switches={switches}: {error}") from error
        finally:
            shutil.rmtree(root)
            shutil.rmtree(to, ignore_errors=True)
        return num_steps


def orders(play: Beside, *, stride: int, since: int = 1) -> None:
    """Every death of the pruning, with one switch at every stride-th place, and some with two."""
    chance = random.Random(SEED)
    for at in itertools.count(since):
        kind = (Kind.DIE_BEFORE, Kind.DIE_AFTER, Kind.TORN)[at % 3]
        num_steps = play(at, kind, 1, ())
        if not play.died:
            return
        for first in (0, 1):
            for place in range(1 + chance.randrange(stride), num_steps, stride):
                play(at, kind, first, (place,))
        play(at, kind, chance.randint(0, 1), tuple(sorted(chance.sample(range(1, num_steps), 2))))


@pytest.mark.fault(62)
@pytest.mark.fault(63)
def test_beside_a_pruning_that_dies_anywhere(new_run: NewRun) -> None:
    print(f"seed {SEED}")
    play = Beside(new_run)
    orders(play, stride=29)
    assert play.completed > 100 and play.failed > 20, (play.completed, play.failed)


def test_planted_nobody_mends(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning_of, "_mend", lambda store, snapshot: False)
    with pytest.raises(AssertionError, match="is committed and not whole"):
        orders(Beside(new_run), stride=5, since=29)


def test_planted_no_pin(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "pin", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="is committed and not whole"):
        orders(Beside(new_run), stride=5)


def test_forks_of_forks_outlive_the_strictest_pruning_of_them_all(new_run: NewRun) -> None:
    first, root, other = World(new_run()), new_run(), new_run()
    two_lives(first)
    second = world_of(root, forked(first.root, first.acknowledged[1], root))
    assert Actor(second).live(saves=1) is None
    wanted = second.acknowledged[1]
    third = world_of(other, forked(root, wanted, other))
    shared = {key.split("/")[1] for key in packs_of(other)}
    assert shared == {read_run(opened(one)).run_id for one in (first.root, root)}, "packs of both"  # type: ignore[union-attr]
    for world in (first, second):
        assert Actor(world).live(saves=2) is None
        age(world.root, 7200.0)
        pruned(world)
    gone = [first.acknowledged[0], second.acknowledged[0]]
    assert all(not is_whole(Bucket(one.uri), Id.parse(lost)) for one, lost in zip((first, second), gone, strict=True))
    assert all(is_whole(Bucket(third.uri), Id.parse(one)) for one in third.acknowledged)
    assert recover(third).step == int(Id.parse(wanted).step) + 1
    for world in (first, second):
        world.check()
    (name,) = set(read_pins(opened(first.root))) & set(read_pins(opened(root)))
    with pytest.raises(AlreadyExists, match=f"it holds {first.acknowledged[1]}"):
        pin(opened(first.root), name, SnapshotId.parse(first.acknowledged[2]))


def packs_of(root: Path) -> list[str]:
    bucket = Bucket(str(root))
    return [pack["key"] for pack in bucket.record(f"snapshots/{bucket.snapshots[0]}.json")["packs"]]
