"""A run's life in miniature: agent and trainer as one actor, over a store that may fail.

An actor makes the calls of `spotckpt.snapshot` in the order in which the agent and the trainer make them. `Protocol`
names these calls, so that a test can put a broken one in the place of a real one and see whether the checker notices.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from spotckpt.address import Selector
from spotckpt.errors import SpotckptError, StopTraining, Superseded
from spotckpt.snapshot import attempts, catalog, choose, fetch, save
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.pack import TensorSpec, layout
from spotckpt.snapshot.records import Base, Claim, Heartbeat, Holder
from spotckpt.snapshot.reuse import Previous
from spotckpt.snapshot.segments import Discontinued
from spotckpt.snapshot.staged import Staged
from spotckpt.store.base import Store
from spotckpt.store.local import LocalStore
from spotckpt.store.retry import Retrying
from tests.support import checker
from tests.support.faulty_store import Crash, Faults, FaultyStore, Gate, Kind, no_gate

STALE_AFTER_S = 0.05
ROWS = 2

TENSORS: tuple[tuple[str, str, Any, tuple[int, ...]], ...] = (
    ("frozen", "F32", np.float32, (400,)),
    ("slow", "F32", np.float32, (150,)),
    ("blinks", "F32", np.float32, (60,)),
    ("rare", "F32", np.float32, (10,)),
    ("model/weight", "F32", np.float32, (7, 3)),
    ("optimizer/exp_avg", "F64", np.float64, (5,)),
    ("optimizer/step", "I64", np.int64, ()),
    ("mask", "U8", np.uint8, (11,)),
)


def marks_of(step: int) -> dict[str, int]:
    """What some tensors hold in place of the step. Sizes and values are such that a snapshot refers to up to three
    older packs, some tensors go up again although they did not change, and some are again what they were before."""
    return {"frozen": 7, "slow": step - step % 2, "blinks": step % 3, "rare": step - step % 3}


class ActorClock:
    """Time that passes only while its actor sleeps."""

    def __init__(self, gate: Gate) -> None:
        self._now = 0.0
        self.gate = gate

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return 1.0e9 + self._now

    def sleep(self, seconds: float) -> None:
        with self.gate("sleep"):
            self._now += max(0.0, seconds)


def log(history: History, step: int) -> None:
    """What each step logs: with `few_bytes` some snapshots refer to two older segments, and some take in others."""
    for number in range(ROWS):
        history.log("train", {"loss": float(step)}, step=ROWS * step + number)
    history.log("valid", {"text": f"step {step}"}, step=step)
    history.log("valid", {"again": float(step)}, step=step % 2, given=True)


def check_history(history: History, step: int) -> None:
    """Whether it is that of a training which has come to this step: without a gap, and no point twice."""
    if step:
        loss, text = history["train"]["loss"], history["valid"]["text"]
        assert loss.steps == list(range(ROWS, ROWS * (step + 1)))
        assert list(loss) == [float(number // ROWS) for number in loss.steps]
        assert list(text) == [f"step {number}" for number in range(1, step + 1)]
        again = {number % 2: float(number) for number in range(1, step + 1)}
        assert dict(zip(history["valid"]["again"].steps, history["valid"]["again"], strict=True)) == again
    else:
        assert not history


def stage(snapshot: SnapshotId, history: History) -> tuple[Staged, memoryview]:
    """A snapshot all of whose numbers are its step, or its marks."""
    rows = history.stage()
    marks = marks_of(snapshot.step)
    specs = tuple(TensorSpec(name, dtype, shape) for name, dtype, _, shape in TENSORS)
    plan = layout(specs)
    data = bytearray(plan.data_bytes + rows.size_bytes)
    history.rows.copy(rows, memoryview(data)[plan.data_bytes :])
    for offset, (name, _, kind, shape) in zip(plan.offsets, TENSORS, strict=True):
        piece = np.full(shape, marks.get(name, snapshot.step), dtype=kind).tobytes()
        data[offset : offset + len(piece)] = piece
    staged = Staged(
        id=str(snapshot),
        step=snapshot.step,
        epoch=-1,
        reason="periodic",
        created=1.0e9,
        tree={"step": snapshot.step, "marks": marks},
        specs=specs,
        history=rows,
        data_bytes=plan.data_bytes,
    )
    return staged, memoryview(bytes(data))


def read_whole(store: Store, snapshot: SnapshotId) -> int:
    """Restores a snapshot, every digest checked, and returns the step that its values say."""
    manifest = fetch.read_manifest(store, snapshot)
    part = fetch.read_part(store, manifest)
    steps = {part.tree["step"]}
    for index, data in fetch.read_tensors(store, part).items():
        name, _, kind, _ = next(one for one in TENSORS if one[0] == part.tensors[index].name)
        numbers = set(np.frombuffer(data, dtype=kind).tolist())
        steps |= {snapshot.step} if numbers == {marks_of(snapshot.step).get(name)} else numbers
    assert len(steps) == 1, f"{snapshot} was restored with values of the steps {steps}"
    check_history(read_history(store, manifest), snapshot.step)
    return int(steps.pop())


def take_and_list(store: Store, won: Callable[[Claim], None], **options: Any) -> tuple[Claim, catalog.Catalog]:
    """Claims, and only then lists: whatever was acknowledged before the claim is then seen."""
    claim = attempts.take(store, **options)
    won(claim)
    return claim, catalog.read_catalog(store, before=claim.attempt)


@dataclass(frozen=True)
class Protocol:
    """The calls that the promise rests on."""

    take_and_list: Callable[..., tuple[Claim, catalog.Catalog]] = take_and_list
    choose: Callable[..., choose.Choice] = choose.choose
    read: Callable[[Store, SnapshotId], int] = read_whole
    upload: Callable[..., tuple[Manifest, Previous]] = save.upload
    commit: Callable[..., None] = save.commit
    wrap: Callable[[Store], Store] = Retrying


REAL = Protocol()
RAW = Protocol(wrap=lambda store: store)


@dataclass
class World:
    """One run, and what its callers were told.

    Attributes:
        root: the run's directory, unless there is `inner`.
        inner: the store of all actors.
        acknowledged: ids, in the order in which `commit` returned, since the last rewind.
        num_acknowledged: how many ever.
        winners: attempt numbers in the order in which claims were won.
        dead: process ids that are known to be gone.
        damaged: ids that the test damaged.
        rewound: the selectors that were followed.
        late: ids that were committed when a later attempt had claimed the run already.
        living: whose life goes on, in a `Past`.
    """

    root: Path
    protocol: Protocol = REAL
    knows_the_dead: bool = True
    acknowledged: list[str] = field(default_factory=list)
    num_acknowledged: int = 0
    winners: list[int] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    late: list[str] = field(default_factory=list)
    rewound: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    at_end: Callable[[], None] = lambda: None
    inner: Store | None = None
    last_pid: int = 999
    living: Actor | None = None

    @property
    def uri(self) -> str:
        return f"file://{self.root}" if self.inner is None else self.inner.uri

    def check(self) -> checker.Id | None:
        """The independent checker's judgement; returns what a plain restart must choose."""
        if len(set(self.winners)) < len(self.winners):
            raise checker.Violation(f"an attempt had two winners: {self.winners}")
        return checker.check(self.uri, self.acknowledged, damaged=self.damaged)

    def copy(self, root: Path) -> World:
        """The same run in another place, as it stands now."""
        shutil.copytree(self.root, root)
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        told = {name: copy(one) for name, one in found.items() if isinstance(one, list | set)}
        world = replace(self, root=root, **told)
        world.living = self.living and self.living.copy(world)
        return world

    def new_pid(self) -> int:
        self.last_pid += 1
        return self.last_pid

    def alive(self, holder: Holder) -> bool | None:
        return holder.agent_pid not in self.dead if self.knows_the_dead else None


class Past:
    """Makes worlds with a past, which is lived once, in `template`, and copied then."""

    def __init__(self, new_run: Callable[[], Path], past: Callable[[World], object], **options: Any) -> None:
        self._new_run = new_run
        self.template = World(new_run(), **options)
        self.template.root.mkdir()
        past(self.template)

    def __call__(self) -> World:
        return self.template.copy(self._new_run())


class Actor:
    """One life of the training."""

    def __init__(self, world: World, faults: Faults | None = None, *, gate: Gate = no_gate) -> None:
        self.world = world
        self.protocol = world.protocol
        self.faults = faults or Faults()
        self.clock = ActorClock(gate)
        inner = world.inner or LocalStore(str(world.root), clock=self.clock)
        self.faulty = FaultyStore(inner, self.faults, gate=gate)
        self.faulty.clock = self.clock
        self.store = self.protocol.wrap(self.faulty)
        self.holder = Holder(host="here", boot_id="boot", pid_namespace="pid:[1]", agent_pid=world.new_pid())
        self.beats = 0
        self.sequence = 0
        self.step = 0
        self.last: str | None = None
        self.previous: Previous | None = None
        self.committed: str | None = None
        self.restored: SnapshotId | None = None
        self.history = History()

    def copy(self, world: World) -> Actor:
        """The same life in a copy of its world."""
        other = Actor(world)
        names = ("holder", "run_id", "attempt", "told", "beats", "sequence", "step", "last", "previous", "committed")
        for name in names:
            setattr(other, name, getattr(self, name))
        other.history = deepcopy(self.history)
        return other

    def held_by(self, gate: Gate) -> Actor:
        """From here on that gate holds it."""
        self.faulty.gate = self.clock.gate = gate
        return self

    def start(self, selector: str = "newest") -> None:
        """Waits, claims, lists, chooses, verifies, records the base."""
        say = self.world.said.append
        self.run_id = attempts.ensure_run(self.store, clock=self.clock).run_id
        claim, found = self.protocol.take_and_list(
            self.store,
            self._won,
            holder=self.holder,
            selector=selector,
            stale_after_s=STALE_AFTER_S,
            say=say,
            clock=self.clock,
            alive=self.world.alive,
        )
        choice = self.protocol.choose(found, claim.attempt, Selector.parse(selector))
        picked = fetch.pick(self.store, choice, lambda one: self.protocol.read(self.store, one), say)
        self.restored, self.step = picked or (None, 0)
        if self.restored is not None:
            assert self.step == self.restored.step, f"{self.restored} was restored with the values of step {self.step}"
        elif self.told and selector != "start":
            raise checker.Violation(f"a fresh start, although {self.told} were acknowledged before its claim")
        if self.restored is not None:
            self.history = read_history(self.store, fetch.read_manifest(self.store, self.restored))
        self.last = str(self.restored) if self.restored else None
        base = Base(self.attempt, self.last, selector, choice.consumed, choice.skipped(self.restored))
        attempts.write_base(self.store, base)
        if self.restored is not None:  # a pruning that did not see the base took it away before
            fetch.read_manifest(self.store, self.restored)

    def _won(self, claim: Claim) -> None:
        self.attempt = claim.attempt
        if claim.selector.startswith("step=") and claim.selector not in self.world.rewound:
            # the user gives up what came after that step
            self.world.rewound.append(claim.selector)
            wanted = int(claim.selector.removeprefix("step="))
            kept = [text for text in self.world.acknowledged if checker.Id.parse(text).step <= wanted]
            self.world.acknowledged[:] = kept
        self.told = list(self.world.acknowledged)
        self.world.winners.append(claim.attempt)
        self.beat()

    def skip_to(self, step: int) -> None:
        """Steps without a snapshot."""
        while self.step < step:
            self.step += 1
            log(self.history, self.step)

    def save(self) -> None:
        """One more step and its snapshot; returns when it is acknowledged and the heartbeat says so."""
        self.save_silently()
        self.beat()

    def save_silently(self) -> None:
        """One more step and its snapshot; returns when it is acknowledged."""
        self.step += 1
        self.sequence += 1
        log(self.history, self.step)
        self._stop_if_superseded()
        try:
            staged, manifest, sent = self._upload()
        except Discontinued:  # the agent drops it, the trainer is told, and stages again
            self.history.committed(None, ())
            staged, manifest, sent = self._upload()
        try:
            self.protocol.commit(self.store, manifest)
        except Superseded:
            self.world.late.append(staged.id)
            raise
        self.world.acknowledged.append(staged.id)
        self.world.num_acknowledged += 1
        self.last, self.committed, self.previous = staged.id, staged.id, sent
        self.history.staged(staged.id)
        if self.step % 3:  # at times the trainer does not hear of it
            self.history.committed(staged.id, [one.size for one in manifest.history])

    def _upload(self) -> tuple[Staged, Manifest, Previous]:
        staged, data = stage(SnapshotId.new(self.attempt, self.sequence, self.step), self.history)
        manifest, sent = self.protocol.upload(
            self.store,
            staged,
            data,
            run_id=self.run_id,
            parent=self.last,
            previous=self._known_parent(),
            say=self.world.said.append,
            clock=self.clock,
        )
        return staged, manifest, sent

    def _known_parent(self) -> Previous | None:
        if self.last is None or self.previous is not None:
            return self.previous
        parent, say = SnapshotId.parse(self.last), self.world.said.append
        return save.find_previous(self.store, parent, run_id=self.run_id, say=say)

    def _stop_if_superseded(self) -> None:
        if attempts.is_superseded(self.store, self.attempt):
            raise Superseded(f"attempt {self.attempt + 1} owns the run")

    def beat(self, *, released: bool = False) -> None:
        self._stop_if_superseded()
        self.beats += 1
        attempts.write_heartbeat(
            self.store,
            Heartbeat(self.attempt, self.beats, self.clock.wall(), released, self.committed, holder=self.holder),
        )

    def live(self, *, saves: int = 2, selector: str = "newest") -> BaseException | None:
        """A whole life; what ended it early, if anything did. Its process is gone then."""
        try:
            self.start(selector)
        except (Crash, SpotckptError, StopTraining) as error:
            self.world.dead.add(self.holder.agent_pid)
            return error
        return self.go_on(saves=saves)

    def go_on(self, *, saves: int) -> BaseException | None:
        """The rest of a life that has started."""
        try:
            for _ in range(saves):
                self.save()
            if saves:
                self.beat(released=True)
        except (Crash, SpotckptError, StopTraining) as error:
            return error
        finally:
            self.world.dead.add(self.holder.agent_pid)
        return None


def recover(world: World, *, selector: str = "newest") -> Actor:
    """A restart without faults: it must find what the checker says, and be able to go on."""
    expected = world.check()
    actor = Actor(world)
    actor.start(selector)
    found = str(actor.restored) if actor.restored else None
    wanted = str(expected) if expected else None
    if found != wanted:
        raise checker.Violation(f"a restart chose {found} where it must choose {wanted}; it said {world.said}")
    actor.save()
    newest = world.check()
    assert str(newest) == actor.committed
    return actor


__all__ = ["RAW", "REAL", "Actor", "ActorClock", "Kind", "Past", "Protocol", "World", "recover", "stage"]
