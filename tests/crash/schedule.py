"""Several actors, one at a time, in an order that the test gives.

Each actor is a thread that stops before every operation on the store that others can notice; the schedule says after
which steps the other one goes on. Nothing is left to the machine's scheduler, so a schedule that fails fails again.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.support.faulty_store import Gate

Actor = Callable[[Gate], None]


_PRIVATE = re.compile(r"sleep|.* packs/.*|(read|stat) snapshots/.*|read run\.json|read attempts/\d+\.json")


def is_shared(operation: str) -> bool:
    """Whether it matters what another actor did just before: packs and parts are their writer's alone until the
    manifest names them, manifests and claims never change, and a sleep is followed by a look."""
    return not _PRIVATE.fullmatch(operation)


class _Lane:
    """One actor's thread. `go` lets it run to its next gate, or to its end."""

    def __init__(self, actor: Actor, number: int, shared: Callable[[str], bool]) -> None:
        self._is_shared = shared
        self.finished = False
        self.error: BaseException | None = None
        self._actor = actor
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._mine = threading.Lock()
        self._started = False
        self._thread = threading.Thread(target=self._run, name=f"actor-{number}", daemon=True)

    def go(self) -> None:
        if not self._started:
            self._started = True
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()
        if self.finished:
            self._thread.join()

    @contextmanager
    def _gate(self, operation: str) -> Iterator[None]:
        if not self._is_shared(operation):
            yield
            return
        with self._mine:  # an actor may read with several threads: they pass one after the other
            self._stopped.release()
            self._go.acquire()
            yield

    def _run(self) -> None:
        try:
            self._actor(self._gate)
        except BaseException as error:  # noqa: BLE001 - the top of a thread: handed to the caller of `run`
            self.error = error
        self.finished = True
        self._stopped.release()


def run(
    actors: Sequence[Actor],
    *,
    first: int = 0,
    switches: Sequence[int] = (),
    limit: int = 5000,
    shared: Callable[[str], bool] = is_shared,
) -> int:
    """Runs all actors to their ends and returns the number of steps; raises the first error of an actor.

    Args:
        actors: each is called with its gate.
        first: which one begins.
        switches: the numbers of the steps before which the next unfinished actor takes over.
        limit: more steps than that are a livelock.
        shared: the operations at which an actor may be held.
    """
    lanes = [_Lane(actor, number, shared) for number, actor in enumerate(actors)]
    current = first
    for step in itertools.count():
        if all(lane.finished for lane in lanes):
            break
        assert step < limit, f"no end after {limit} steps (first={first}, switches={list(switches)})"
        if step in switches or lanes[current].finished:
            current = _next(lanes, current)
        lanes[current].go()
    for lane in lanes:
        if lane.error is not None:
            raise lane.error
    return step


def _next(lanes: Sequence[_Lane], current: int) -> int:
    for offset in range(1, len(lanes) + 1):
        candidate = (current + offset) % len(lanes)
        if not lanes[candidate].finished:
            return candidate
    raise AssertionError("all have finished")


Schedule = tuple[int, tuple[int, ...]]


def all_schedules(play: Callable[[int, tuple[int, ...]], int], *, max_switches: int, stride: int = 1) -> int:
    """Plays every schedule with up to that many switches, each actor beginning once; returns how many there were.

    Args:
        play: plays one (first, switches) from a clean state and returns its number of steps.
        max_switches: the bound.
        stride: takes every that many positions of the last switch only.
    """
    played = 0
    generator = random.Random(0)
    open_schedules: list[Schedule] = [(0, ()), (1, ())]
    while open_schedules:
        # in a scattered order, always the same: what goes wrong in some schedules is then met early
        first, switches = open_schedules.pop(generator.randrange(len(open_schedules)))
        num_steps = play(first, switches)
        played += 1
        if len(switches) < max_switches:
            after = switches[-1] if switches else 0
            step = stride if len(switches) + 1 == max_switches else 1
            positions = range(after + 1 + after % step, num_steps, step)  # not the same ones for each first switch
            open_schedules.extend((first, (*switches, position)) for position in positions)
    return played


def random_schedules(seed: int, *, num_schedules: int, num_steps: int) -> Iterator[Schedule]:
    """Schedules with any number of switches; the same seed gives the same ones."""
    generator = random.Random(seed)
    for _ in range(num_schedules):
        count = generator.randint(3, max(3, num_steps // 3))
        yield generator.randint(0, 1), tuple(sorted(generator.sample(range(1, num_steps), count)))
