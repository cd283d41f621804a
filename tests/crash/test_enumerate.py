"""Starting, saving, committing, beating and releasing, cut at every operation on the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spotckpt.errors import OutcomeUnknown, StoreError, Unavailable
from tests.crash.conftest import NewRun
from tests.crash.schedule import is_shared
from tests.crash.world import RAW, Actor, Past, World, recover
from tests.support.faulty_store import Crash, Faults, Kind, enumerate_faults


def empty(world: World) -> None:
    """Nothing yet."""


def released(world: World) -> None:
    """An attempt that ended well."""
    assert Actor(world).live() is None


def crashed(world: World) -> None:
    """An attempt that was killed after a commit, before its heartbeat told of it."""
    actor = Actor(world)
    actor.start()
    actor.save_silently()
    world.dead.add(actor.holder.agent_pid)


BEFORE = pytest.mark.parametrize("before", [empty, released, crashed], ids=lambda function: function.__name__)
Before = Callable[[World], None]


def play(past: Past, faults: Faults, *, restarts: int = 1) -> None:
    """A life with a fault in it, then restarts; each must find what it must, and go on."""
    world = past()
    error = Actor(world, faults).live()
    assert (error is None) == (not faults.fired), f"{faults}: {error!r}"
    for _ in range(restarts):
        actor = recover(world)
        world.dead.add(actor.holder.agent_pid)
    shutil.rmtree(world.root)


@pytest.mark.fault(1)
@BEFORE
@pytest.mark.parametrize("kind", [Kind.DIE_BEFORE, Kind.DIE_AFTER], ids=lambda kind: kind.name)
def test_killed_at_every_operation(new_run: NewRun, before: Before, kind: Kind) -> None:
    past = Past(new_run, before)
    fired = enumerate_faults(kind, lambda faults: play(past, faults, restarts=2 if before is crashed else 1))
    verbs = {operation.split()[0] for operation in fired}
    assert verbs >= {"create", "put", "put(inner)", *(("read", "list", "stat") if kind is Kind.DIE_BEFORE else ())}
    assert any("create snapshots/" in operation for operation in fired)


@pytest.mark.fault(1)
def test_killed_at_every_operation_when_nobody_knows_who_is_dead(new_run: NewRun) -> None:
    def scenario(faults: Faults) -> None:
        world = World(new_run(), knows_the_dead=False)
        Actor(world, faults).live()
        claimed = (world.root / "attempts/0001.json").exists()
        heartbeat = world.root / "attempts/0001.heartbeat.json"
        released = heartbeat.exists() and b'"released":true' in heartbeat.read_bytes()
        recover(world)
        assert any("no sign of life" in line for line in world.said) == (claimed and not released)

    enumerate_faults(Kind.DIE_AFTER, scenario)


@pytest.mark.fault(35)
@BEFORE
@pytest.mark.parametrize("kind", [Kind.ONCE, Kind.LOST_REPLY], ids=lambda kind: kind.name)
def test_one_failure_is_survived_without_an_error(new_run: NewRun, before: Before, kind: Kind) -> None:
    past = Past(new_run, before)

    def scenario(faults: Faults) -> None:
        world = past()
        acknowledged = len(world.acknowledged)
        error = Actor(world, faults).live()
        assert error is None, f"{faults}: {error!r}"
        assert len(world.acknowledged) == acknowledged + 2, str(faults)
        recover(world)

    fired = enumerate_faults(kind, scenario)
    assert any("create snapshots/" in operation for operation in fired)


@BEFORE
def test_unknown_outcome_is_wholly_old_or_wholly_new(new_run: NewRun, before: Before) -> None:
    past = Past(new_run, before, protocol=RAW)

    def scenario(faults: Faults) -> None:
        world = past()
        error = Actor(world, faults).live()
        assert error is None or isinstance(error, OutcomeUnknown), f"{faults}: {error!r}"
        assert (error is not None) == faults.fired
        recover(world)

    enumerate_faults(Kind.LOST_REPLY, scenario)


@BEFORE
def test_store_that_is_gone_for_good_from_any_operation_on(new_run: NewRun, before: Before) -> None:
    past = Past(new_run, before)

    def scenario(faults: Faults) -> None:
        world = past()
        error = Actor(world, faults).live()
        if faults.fired:
            assert isinstance(error, Unavailable | OutcomeUnknown), f"{faults}: {error!r}"
            assert isinstance(error, StoreError)
            assert error.key
        recover(world)

    enumerate_faults(Kind.FOREVER, scenario)


@pytest.mark.fault(46)
@BEFORE
def test_a_listing_that_is_empty_once(new_run: NewRun, before: Before) -> None:
    past = Past(new_run, before)

    def scenario(faults: Faults) -> None:
        world = past()
        expected = world.check()
        actor = Actor(world, faults)
        assert actor.live() is None
        assert (actor.restored and str(actor.restored)) == (expected and str(expected)), str(faults)
        recover(world)

    assert len(enumerate_faults(Kind.EMPTY_LIST, scenario)) >= 3


@pytest.mark.fault(2)
@pytest.mark.parametrize("before", [empty, released], ids=lambda function: function.__name__)
def test_request_in_flight_lands_at_any_time_after_the_death(new_run: NewRun, before: Before) -> None:
    """What a client that died had sent may be carried out later: between any two reads or claims of the next one."""
    past, whole = Past(new_run, before), Faults()
    _dies(past(), whole)
    for number, operation in enumerate(whole.trace, 1):
        if not _may_matter_late(operation) or (before is released and "run.json" in operation):
            continue
        landing, trace = 0, ["the first"]
        while landing <= len(trace):
            landing += 1
            if landing > len(trace) or is_shared(trace[landing - 1]) or landing == 1:
                trace = _lands(past(), Faults(Kind.DIE_IN_FLIGHT, number), landing)


def _may_matter_late(operation: str) -> bool:
    return operation.split(maxsplit=1)[0] in ("create", "put") and is_shared(operation)


def _dies(world: World, faults: Faults) -> None:
    Actor(world, faults).live(saves=1)


def _lands(world: World, faults: Faults, landing: int) -> list[str]:
    """The request lands before that operation of a restart that dies before its first commit, or else after it.

    Returns:
        The operations of that restart.
    """
    _dies(world, faults)
    counted = _LandsBefore(faults, landing)
    assert Actor(world, counted).live(saves=0) is None, f"{faults}, landing before operation {landing}"
    faults.land()
    world.check()
    recover(world)
    shutil.rmtree(world.root)
    return counted.trace


class _LandsBefore(Faults):
    """No fault of its own: lands another's request before one operation."""

    def __init__(self, other: Faults, landing: int) -> None:
        super().__init__()
        self.other = other
        self.landing = landing

    def _due(self, what: str) -> bool:
        if len(self.trace) + 1 == self.landing:
            self.other.land()
        return super()._due(what)


@pytest.mark.fault(89)
@pytest.mark.parametrize("before", [empty, released], ids=lambda function: function.__name__)
def test_killed_again_during_the_recovery(new_run: NewRun, before: Before) -> None:
    past, kinds = Past(new_run, before), (Kind.DIE_BEFORE, Kind.DIE_AFTER)

    def scenario(first: Faults) -> None:
        number = 1 + first.at % 7
        while _twice(past(), Faults(first.kind, first.at), Faults(kinds[number // 7 % 2], number)):
            number += 7
        _dies(past(), first)

    enumerate_faults(Kind.DIE_AFTER, scenario)


def _twice(world: World, first: Faults, second: Faults) -> bool:
    Actor(world, first).live(saves=1)
    world.check()
    error = Actor(world, second).live(saves=1)
    assert error is None or isinstance(error, Crash), f"{first}, then {second}: {error!r}"
    recover(world)
    shutil.rmtree(world.root)
    return second.fired


def test_rewind_stays_in_force_wherever_it_is_cut(new_run: NewRun) -> None:
    past = Past(new_run, three)
    for again in ("newest", "step=1"):
        for kind in (Kind.DIE_BEFORE, Kind.DIE_AFTER):
            enumerate_faults(kind, lambda faults, again=again: rewind(past(), faults, again))  # type: ignore[misc]


def three(world: World) -> None:
    """An attempt with three snapshots."""
    assert Actor(world).live(saves=3) is None


def rewind(world: World, faults: Faults, again: str) -> None:
    """A life that goes back in a run of `three`."""
    Actor(world, faults).live(saves=1, selector="step=1")
    rewound = (world.root / "attempts/0002.json").exists()
    saved = [text for text in world.acknowledged if text.startswith("a0002")]
    if rewound:
        world.acknowledged[1:] = saved
    expected = world.check()
    assert expected is not None
    assert expected.step == ((2 if expected.attempt == 2 else 1) if rewound else 3)
    if not rewound and again != "newest":
        world.acknowledged[1:] = []
        actor = Actor(world)
        actor.start(again)
        assert actor.step == 1
    else:
        recover(world, selector=again)


@pytest.mark.fault(66)
@pytest.mark.fault(67)
@pytest.mark.parametrize("damage", ["pack", "part", "manifest", "no pack", "no part"])
def test_damaged_base_gives_way_to_the_next_and_says_so(new_run: NewRun, damage: str) -> None:
    past = Past(new_run, three)
    enumerate_faults(Kind.DIE_AFTER, lambda faults: damaged_base(past(), faults, damage))


def damaged_base(world: World, faults: Faults, damage: str) -> None:
    """After `three` an attempt records its base, that is damaged, and a restart is cut; the next one is judged."""
    second = Actor(world)
    second.start()
    world.dead.add(second.holder.agent_pid)
    base = str(second.restored)
    damaged = _damage(world.root, base, damage)
    world.damaged.add(base)
    if faults.at:
        Actor(world, faults).live(saves=1)
    recover(world)
    told = [line for line in world.said if base in line]
    assert told, world.said
    assert damaged in told[0]


def _damage(root: Path, snapshot: str, damage: str) -> str:
    key = {
        "manifest": f"snapshots/{snapshot}.json",
        "pack": f"packs/{snapshot}/rank-00000.safetensors",
        "part": f"packs/{snapshot}/rank-00000.json",
    }[damage.removeprefix("no ")]
    path = root / key
    if damage.startswith("no "):
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-20] ^= 4
        path.write_bytes(data)
    return key
