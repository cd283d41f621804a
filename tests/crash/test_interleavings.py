"""Two attempts at once, in every order up to a number of switches, and in random orders beyond."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence

import pytest

from tests.crash.conftest import NewRun
from tests.crash.schedule import Actor as Lane
from tests.crash.schedule import all_schedules, random_schedules, run
from tests.crash.world import RAW, Actor, Past, Protocol, World, recover
from tests.support import checker
from tests.support.faulty_store import Gate

SEED = int(os.environ.get("SPOTCKPT_TEST_SEED", "20240611"))

Scene = Callable[[World], Sequence[Lane]]


def late_commits(world: World) -> Sequence[Lane]:
    """An attempt that nobody hears of goes on committing, with higher steps than its successor has."""
    first, second = Actor(world), Actor(world)
    first.start()
    first.skip_to(10)
    first.save()

    def goes_on(gate: Gate) -> None:
        first.held_by(gate).go_on(saves=2)

    return goes_on, lambda gate: _lives(second.held_by(gate))


def late_first_commit(world: World) -> Sequence[Lane]:
    """The same, but it had not committed anything before: its successor may start from scratch."""
    first, second = Actor(world), Actor(world)
    first.start()
    return (lambda gate: _goes_on(first.held_by(gate))), lambda gate: _lives(second.held_by(gate))


def both_start(world: World) -> Sequence[Lane]:
    """Two first attempts."""
    return [lambda gate, actor=actor: _lives(actor.held_by(gate)) for actor in (Actor(world), Actor(world))]  # type: ignore[misc]


def both_go_on(world: World) -> Sequence[Lane]:
    """Two restarts of a run that was released."""
    return both_start(world)


def rewinds(world: World) -> Sequence[Lane]:
    """One goes back to step 1 and dies before its first commit, another restarts plainly."""
    first, second = Actor(world), Actor(world)

    def goes_back(gate: Gate) -> None:
        first.held_by(gate).live(saves=0, selector="step=1")

    return goes_back, lambda gate: _lives(second.held_by(gate))


def _lives(actor: Actor) -> None:
    actor.live(saves=1)


def _goes_on(actor: Actor) -> None:
    actor.go_on(saves=1)


SCENES = [late_commits, late_first_commit, both_start, both_go_on, rewinds]
PASTS = {both_go_on: 2, rewinds: 3}
"""How many snapshots an attempt had left that was released."""


class Play:
    """A scene, played in a given order in a fresh world, judged at its end and after a restart.

    Attributes:
        late: how many snapshots came too late, over all plays.
        acknowledged: how many were acknowledged.
    """

    def __init__(self, new_run: NewRun, scene: Scene, protocol: Protocol = RAW) -> None:
        self.scene = scene
        self.past = Past(new_run, self._live, protocol=protocol, knows_the_dead=False)
        self.late = 0
        self.acknowledged = 0

    def _live(self, world: World) -> None:
        if self.scene in PASTS:
            assert Actor(world).live(saves=PASTS[self.scene]) is None

    def __call__(self, first: int, switches: Sequence[int]) -> int:
        world = self.past()
        lanes = self.scene(world)
        before = world.num_acknowledged
        try:
            num_steps = run(lanes, first=first, switches=switches)
            self.acknowledged += world.num_acknowledged - before
            self.late += len(world.late)
            recover(world)
            _late_ones_are_left_alone(world)
        except AssertionError as error:
            raise type(error)(f"{self.scene.__name__}, first={first}, switches={list(switches)}: {error}") from error
        finally:
            shutil.rmtree(world.root, ignore_errors=True)
        return num_steps


def _late_ones_are_left_alone(world: World) -> None:
    """A snapshot that the successor's listing missed is nobody's base, ever."""
    bases = checker.Bucket(f"file://{world.root}").bases
    for late in map(checker.Id.parse, world.late):
        successor = bases.get(late.attempt + 1)
        if successor is not None and successor["snapshot"] != str(late):
            assert all(base["snapshot"] != str(late) for base in bases.values()), f"{late} came too late and was used"


@pytest.mark.fault(60)
@pytest.mark.fault(61)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_every_order_with_two_switches(new_run: NewRun, scene: Scene) -> None:
    play = Play(new_run, scene)
    num_played = all_schedules(play, max_switches=2, stride=17)
    assert num_played > 100
    assert play.acknowledged > num_played // 2
    assert play.late > 0 or scene is rewinds


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_random_orders(new_run: NewRun, scene: Scene) -> None:
    print(f"seed {SEED}")  # shown when it fails; SPOTCKPT_TEST_SEED takes another
    play = Play(new_run, scene)
    for first, switches in random_schedules(SEED, num_schedules=25, num_steps=50):
        play(first, switches)
