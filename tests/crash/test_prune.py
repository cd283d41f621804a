"""Pruning, cut at every operation, and beside everything else that may go on in a run."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from spotckpt.address import Selector
from spotckpt.config import Keep
from spotckpt.errors import Pruned, SnapshotError, SpotckptError, StoreError, Superseded
from spotckpt.snapshot import prune as pruning_of
from spotckpt.snapshot import retention, save
from spotckpt.snapshot.catalog import read_catalog
from spotckpt.snapshot.choose import choose
from spotckpt.snapshot.fetch import pick
from spotckpt.snapshot.keys import SnapshotId, manifest_key, pack_key
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.pins import pin
from spotckpt.snapshot.prune import Pruning, prune
from spotckpt.snapshot.retention import SETTLING_S, SWEEP_AGE_S
from spotckpt.store.base import Store
from spotckpt.store.local import LocalStore
from tests.crash.conftest import NewRun
from tests.crash.schedule import Actor as Lane
from tests.crash.schedule import all_schedules, random_schedules, run
from tests.crash.test_interleavings import SEED
from tests.crash.test_sharing import Meanwhile
from tests.crash.world import RAW, REAL, Actor, ActorClock, Past, Protocol, World, read_whole, recover
from tests.support.checker import Bucket, Id, is_whole, leftovers
from tests.support.faulty_store import Crash, Faults, FaultyStore, Gate, Kind, enumerate_faults, no_gate

LAST = Keep.parse("last=1")
"""The strictest: what it keeps beside the newest, it keeps because it must."""


def pruned(
    world: World,
    faults: Faults | None = None,
    *,
    gate: Gate = no_gate,
    keep: Keep = LAST,
    abandoned: bool = False,
    protocol: Protocol = REAL,
) -> Pruning:
    """One pruning by a process of its own."""
    clock = ActorClock(gate)
    store = FaultyStore(LocalStore(str(world.root), clock=clock), faults or Faults(), gate=gate)
    store.clock = clock
    return prune(protocol.wrap(store), keep, abandoned=abandoned, clock=clock)


def age(root: Path, seconds: float, *, but: str = "") -> None:
    """Everything there, as if it had been written so long ago."""
    then = time.time() - seconds
    for path in root.rglob("*"):
        if path.is_file() and not (but and but in str(path)):
            os.utime(path, (then, then))


def two_lives(world: World) -> None:
    """Shared packs, an orphan of an upload that died, and a second attempt that was killed."""
    assert Actor(world).live(saves=3) is None
    second = Actor(world)
    assert second.live(saves=1) is None
    third = Actor(world, Faults(Kind.DIE_BEFORE, 0))
    third.start()
    third.save()
    third.save()
    third.faulty.faults.kind, third.faulty.faults.at = Kind.DIE_BEFORE, len(third.faulty.faults.trace) + 5
    with pytest.raises(Crash):
        third.save()
    world.dead.add(third.holder.agent_pid)
    age(world.root, 2 * SETTLING_S)


def kept(world: World) -> list[int]:
    return [one.step for one in Bucket(world.uri).snapshots]


@pytest.mark.fault(62)
@pytest.mark.parametrize("kind", [Kind.DIE_BEFORE, Kind.DIE_AFTER, Kind.TORN], ids=lambda kind: kind.name)
def test_killed_at_every_operation(new_run: NewRun, kind: Kind) -> None:
    past = Past(new_run, two_lives)

    def scenario(faults: Faults) -> None:
        world = past()
        faults.tears = True  # of a deletion: half of the keys are gone
        try:
            pruned(world, faults)
        except Crash:
            assert faults.fired
        expected = world.check()
        assert expected is not None and expected.step == 6
        if faults.at % 2:
            pruned(world)  # finishes what the other had begun
            assert kept(world) == [4, 6], "the base of the highest attempt, and the newest"
            assert leftovers(world.uri) == [] or all("/a0003-" in key for key in leftovers(world.uri))
            world.check()
        recover(world)
        shutil.rmtree(world.root)

    fired = enumerate_faults(kind, scenario)
    verbs = {operation.split()[0] for operation in fired}
    assert verbs >= {"put", "delete", *(("list", "read", "stat") if kind is Kind.DIE_BEFORE else ())}


@pytest.mark.parametrize("kind", [Kind.ONCE, Kind.LOST_REPLY, Kind.EMPTY_LIST], ids=lambda kind: kind.name)
def test_a_failure_is_survived_and_a_listing_that_is_empty_once_deletes_nothing_needed(
    new_run: NewRun, kind: Kind
) -> None:
    past = Past(new_run, two_lives)

    def scenario(faults: Faults) -> None:
        world = past()
        try:
            pruned(world, faults)
        except SpotckptError:
            assert kind is Kind.EMPTY_LIST
        recover(world)
        shutil.rmtree(world.root)

    enumerate_faults(kind, scenario)


def test_a_store_that_is_gone_for_good_from_any_operation_on(new_run: NewRun) -> None:
    past = Past(new_run, two_lives)

    def scenario(faults: Faults) -> None:
        world = past()
        try:
            found = pruned(world, faults)
            assert not faults.fired or found.notes, str(faults)
        except StoreError as error:
            assert faults.fired and error.key is not None
        recover(world)
        shutil.rmtree(world.root)

    enumerate_faults(Kind.FOREVER, scenario)


def test_a_pruned_run_goes_on_and_says_what_was_pruned(new_run: NewRun) -> None:
    world = World(new_run())
    two_lives(world)
    found = pruned(world)
    assert kept(world) == [4, 6] and len(found.plan.drop) == 4 and found.freed_bytes > 0
    assert not pruned(world), "there is nothing more to do"
    gone = SnapshotId.parse(world.acknowledged[1])
    with pytest.raises(Pruned, match=rf"snapshot {gone} was pruned on .* UTC \(none of last=1\)"):
        read_whole(LocalStore(str(world.root)), gone)
    store = LocalStore(str(world.root))
    for selector in (str(gone), "step=2"):
        with pytest.raises(Pruned, match=rf"{gone} was pruned"):
            choice = choose(read_catalog(store), 4, Selector.parse(selector), claiming=False)
            pick(store, choice, lambda one: read_whole(store, one), print)
    actor = recover(world)
    assert actor.step == 7


# beside others


_PRIVATE = ("sleep", "time", "put(inner)", "put packs/", "read run.json", "unfinished")


def is_shared(operation: str) -> bool:
    """Nearly everything may matter here: what was the writer's alone may go."""
    return not operation.startswith(_PRIVATE)


def committing(world: World) -> Sequence[Lane]:
    """An attempt that lives saves, while its older snapshots are pruned."""
    actor = world.living
    assert actor is not None
    return (lambda gate: _saves(actor.held_by(gate))), lambda gate: _prunes(world, gate)


def unacknowledged(world: World) -> Sequence[Lane]:
    """The same after a commit without an answer, which the attempt does not go on from."""
    actor = world.living
    assert actor is not None
    last, previous = actor.last, actor.previous
    actor.save_silently()
    world.acknowledged.pop()
    world.num_acknowledged -= 1
    actor.last, actor.committed, actor.previous = last, last, previous
    actor.skip_to(REFERS_TO_ITS_PARENT - 1)
    return (lambda gate: _saves(actor.held_by(gate))), lambda gate: _prunes(world, gate)


def restarting(world: World) -> Sequence[Lane]:
    """A restart."""
    actor = Actor(world)
    return (lambda gate: actor.held_by(gate).live(saves=1) and None), lambda gate: _prunes(world, gate)


def going_back(world: World) -> Sequence[Lane]:
    """A restart from one that the policy does not keep: it goes on from there, or says that it cannot."""
    actor, before = Actor(world), list(world.acknowledged)
    wanted = Id.parse(before[1])
    errors: list[BaseException | None] = []

    def at_end() -> None:
        bucket = Bucket(world.uri)
        if errors[0] is None:
            assert str(actor.restored) == str(wanted)
            assert is_whole(bucket, wanted), f"{wanted} was gone on from, and is pruned"
        assert errors[0] is None or isinstance(errors[0], SnapshotError), errors[0]
        if 2 not in bucket.bases or wanted not in bucket.snapshots:
            world.acknowledged[:] = before

    def goes_back(gate: Gate) -> None:
        errors.append(actor.held_by(gate).live(saves=0, selector="step=2"))

    world.at_end = at_end
    return goes_back, lambda gate: _prunes(world, gate)


def forking(world: World) -> Sequence[Lane]:
    """Another run is to begin with one of these snapshots: the pin comes first."""
    wanted = SnapshotId.parse(world.acknowledged[1])

    def pins(gate: Gate) -> None:
        store = FaultyStore(LocalStore(str(world.root)), Faults(), gate=gate)
        try:
            pin(store, "fork", wanted)
        except Pruned:
            return
        world.at_end = lambda: _is_held(world, Id.parse(str(wanted)))

    return pins, lambda gate: _prunes(world, gate)


def superseded(world: World) -> Sequence[Lane]:
    """Nobody hears of an attempt, which goes on committing, while its successor goes back, saves and prunes."""
    first, second = world.living, Actor(world)
    assert first is not None
    first.skip_to(REFERS_TO_ITS_PARENT - 1)

    def takes_over(gate: Gate) -> None:
        if second.held_by(gate).live(saves=1, selector="step=1") is None:
            _prunes(world, gate, abandoned=True)

    return (lambda gate: _saves(first.held_by(gate))), takes_over


def twice(world: World) -> Sequence[Lane]:
    """Two at once, of which one keeps more."""
    return (lambda gate: _prunes(world, gate)), lambda gate: _prunes(world, gate, "last=2")


REFERS_TO_ITS_PARENT = 8
"""After step 5, whose own pack it refers to, as the snapshot of step 6 does not."""


def _living(world: World) -> None:
    """The past of those with a life that goes on."""
    world.living = actor = Actor(world)
    actor.start()
    for _ in range(5):
        actor.save()
    age(world.root, 2 * SETTLING_S)


def _over(world: World) -> None:
    """The past of those scenes that begin with a run that nobody trains."""
    assert Actor(world).live(saves=4) is None
    age(world.root, 2 * SETTLING_S)


def _saves(actor: Actor) -> None:
    actor.go_on(saves=1)


def _prunes(world: World, gate: Gate, keep: str = "last=1", *, abandoned: bool = False) -> None:
    try:
        pruned(world, gate=gate, keep=Keep.parse(keep), abandoned=abandoned, protocol=RAW)
    except (SnapshotError, StoreError) as error:
        world.said.append(f"pruning: {error}")


SHORT = [committing, unacknowledged, going_back, forking]
SCENES = [*SHORT, restarting, superseded, twice]
PASTS = {
    **dict.fromkeys((committing, unacknowledged, superseded), _living),
    **dict.fromkeys((going_back, forking, restarting, twice), _over),
}
Scene = Callable[[World], Sequence[Lane]]


class Play:
    """A scene in a given order, judged at its end and after a restart; `pruned` counts plays that deleted something."""

    def __init__(self, new_run: NewRun, scene: Scene, protocol: Protocol = RAW) -> None:
        self.past = Past(new_run, PASTS[scene], protocol=protocol, knows_the_dead=False)
        self.scene = scene
        self.pruned = 0

    def __call__(self, first: int, switches: Sequence[int]) -> int:
        world = self.past()
        lanes = self.scene(world)
        try:
            num_steps = run(lanes, first=first, switches=switches, shared=is_shared)
            self.pruned += bool(Bucket(world.uri).pruned)
            world.at_end()
            world.check()
            recover(world)
        except (AssertionError, SpotckptError, Superseded) as error:
            raise AssertionError(f"{self.scene.__name__}, first={first}, switches={list(switches)}: {error}") from error
        finally:
            shutil.rmtree(world.root, ignore_errors=True)
        return num_steps


def _is_held(world: World, snapshot: Id) -> None:
    assert is_whole(Bucket(world.uri), snapshot), f"{snapshot} was pinned, and is pruned"


@pytest.mark.fault(62)
@pytest.mark.fault(63)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_every_order(new_run: NewRun, scene: Scene) -> None:
    """With one switch, and many with two."""
    play = Play(new_run, scene)
    num_played = all_schedules(play, max_switches=2 if scene in SHORT else 1, stride=131 if scene in SHORT else 1)
    assert num_played > 40 and play.pruned > num_played // 4


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_random_orders(new_run: NewRun, scene: Scene) -> None:
    print(f"seed {SEED}")  # shown when it fails; SPOTCKPT_TEST_SEED takes another
    play = Play(new_run, scene)
    for first, switches in random_schedules(SEED, num_schedules=12, num_steps=70):
        play(first, switches)


@pytest.mark.fault(22)
@pytest.mark.fault(63)
def test_a_sleeper_that_wakes_after_days_while_its_successor_swept(new_run: NewRun) -> None:
    """It falls asleep before any of its operations; what it had sent is deleted meanwhile, and it commits nothing."""
    # within a request, and between two
    assert min(_sleeps(new_run, REAL), _sleeps(new_run, RAW)) >= 4, "it slept too seldom with something sent"


def _sleeps(new_run: NewRun, protocol: Protocol) -> int:
    past = Past(new_run, _living, protocol=protocol, knows_the_dead=False)
    number, swept = 1, 0
    while True:
        world = past()
        sleeper = world.living
        assert sleeper is not None
        begun = len(sleeper.faults.trace)
        sleeps = Meanwhile(begun + number, lambda world=world, sleeper=sleeper: _days(world, sleeper))
        sleeps.trace = sleeper.faults.trace
        sleeper.faulty.faults = sleeps
        sent = f"a0001-n{sleeper.sequence + 1:06d}"
        try:
            sleeper.save_silently()
        except (Superseded, StoreError):
            swept += not any(sent in key for key in Bucket(world.uri).keys("packs"))
        over = len(sleeps.trace) < begun + number
        world.check()
        assert not [one for one in Bucket(world.uri).snapshots if str(one).startswith(sent)] or number >= swept
        if not over:
            recover(world)
        shutil.rmtree(world.root)
        if over:
            return swept
        number += 1


def _days(world: World, sleeper: Actor) -> None:
    age(world.root, SWEEP_AGE_S + 86400)
    sleeper.clock._now += SWEEP_AGE_S + 86400
    successor = Actor(world)
    assert successor.live(saves=1) is None
    pruned(world)


def test_temporary_files_of_dead_writers_are_swept(new_run: NewRun) -> None:
    world = World(new_run())
    two_lives(world)
    lost = world.root / "packs" / world.acknowledged[0] / ".tmp-17-0123456789abcdef-rank-00000.safetensors"
    stranger = lost.with_name(".tmp-editor")
    for path in (lost, stranger):
        path.write_bytes(b"half")
    assert not [path for path in _temporaries(world.root) if path not in (lost, stranger)]
    pruned(world)
    assert lost.exists(), "it may still be written"
    for path in (lost, stranger):
        os.utime(path, (1.0, 1.0))
    found = pruned(world)
    assert [write.key for write in found.uploads] == [
        str(lost.with_name("rank-00000.safetensors").relative_to(world.root))
    ]
    assert not lost.exists() and stranger.exists()
    recover(world)


def _temporaries(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob(".tmp-*"))


def test_what_others_refer_to_stays_when_its_own_snapshot_goes(new_run: NewRun) -> None:
    world = World(new_run())
    assert Actor(world).live(saves=6) is None
    first = SnapshotId.parse(world.acknowledged[0])
    found = pruned(world)
    assert first in found.plan.drop and pack_key(first) not in found.objects
    assert (world.root / pack_key(first)).exists()
    newest = world.check()
    assert newest is not None and newest.step == 6
    assert leftovers(world.uri) == []


# planted bugs: the scenes must show every one of them


def expect_caught(new_run: NewRun, scene: Scene, match: str, protocol: Protocol = RAW) -> None:
    with pytest.raises(AssertionError, match=match):
        all_schedules(Play(new_run, scene, protocol), max_switches=2, stride=3)


@pytest.mark.parametrize(("scene", "match"), [(going_back, "and is pruned"), (forking, "and is pruned")])
def test_planted_no_second_look(new_run: NewRun, monkeypatch: pytest.MonkeyPatch, scene: Scene, match: str) -> None:
    monkeypatch.setattr(pruning_of, "needed", lambda seen: set())
    expect_caught(new_run, scene, match)


def test_planted_only_the_newest_is_spared(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_could_be_parents", lambda seen, attempt: ())
    expect_caught(new_run, unacknowledged, "is committed and not whole")


def test_planted_commit_without_a_look_before(new_run: NewRun) -> None:
    def only_after(store: Store, manifest: Manifest) -> None:
        store.put_if_absent(manifest_key(manifest.snapshot), manifest.to_bytes())
        if save.is_superseded(store, manifest.snapshot.attempt):
            raise Superseded("too late")

    with pytest.raises(AssertionError, match="is committed and not whole"):
        _sleeps(new_run, replace(RAW, commit=only_after))


def test_planted_nothing_recorded(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning_of, "tombstone_key", lambda snapshot: f"pruned/{snapshot}.txt")
    expect_caught(new_run, twice, "were acknowledged")
