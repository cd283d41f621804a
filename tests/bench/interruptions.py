"""A training on a machine that goes, in virtual time: what is committed when it is gone, by several strategies.

Only the world is made up here: lines, boundaries, evaluations. What decides is the planner's own function, and what it
knows of the line and of the training comes from the agent's own estimators.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from spotckpt.agent.bandwidth import Bandwidth
from spotckpt.agent.pace import Boundaries, Pace
from spotckpt.agent.planner import Flight, Plan, Situation, decide
from spotckpt.notices.notice import Notice

ORACLE, PLANNER, AT_ONCE, PERIODIC = STRATEGIES = ("oracle", "planner", "save at once", "last periodic")
TICK_S = 0.25
SAMPLE_S = 0.5
COMMIT_S = 0.3
COPY_BYTES_PER_S = 4e9


@dataclass(frozen=True)
class Line:
    """What a line carries: from each of the moments on, so many bytes per second."""

    moments: Sequence[float]
    rates: Sequence[float]

    def carried(self, begin: float, end: float) -> float:
        """Bytes between two moments."""
        total, at = 0.0, begin
        for index in range(max(0, bisect.bisect_right(self.moments, begin) - 1), len(self.moments)):
            until = min(end, self.moments[index + 1] if index + 1 < len(self.moments) else math.inf)
            if until > at:
                total += self.rates[index] * (until - at)
                at = until
            if at >= end:
                break
        return total

    def when(self, begin: float, size_bytes: float) -> float:
        """When so many bytes have gone; infinite if never."""
        at = begin
        for index in range(max(0, bisect.bisect_right(self.moments, begin) - 1), len(self.moments)):
            until = self.moments[index + 1] if index + 1 < len(self.moments) else math.inf
            rate = self.rates[index]
            if rate and size_bytes <= rate * (until - at):
                return at + size_bytes / rate
            size_bytes -= rate * (until - at) if rate else 0.0
            at = until
        return math.inf


@dataclass(frozen=True)
class Case:
    """One interruption. Times are seconds from the training's beginning.

    Attributes:
        size_bytes: of a snapshot.
        line: to the bucket.
        step_s: between two boundaries.
        evaluate_steps: after so many there is an evaluation; 0: never.
        evaluate_s: how long it takes.
        every_s: between periodic snapshots.
        notice_at: when the notice comes.
        lead_s: what it says is left; None if it does not say.
        gone_at: when the machine goes.
        reserve_s: as set.
    """

    size_bytes: int
    line: Line
    step_s: float
    evaluate_steps: int
    evaluate_s: float
    every_s: float
    notice_at: float
    lead_s: float | None
    gone_at: float
    reserve_s: float = 10.0

    @property
    def copy_s(self) -> float:
        return self.size_bytes / COPY_BYTES_PER_S + 0.01

    def interval_s(self, step: int) -> float:
        """From that boundary to the next."""
        evaluates = self.evaluate_steps and step and step % self.evaluate_steps == 0
        return self.step_s + (self.evaluate_s if evaluates else 0.0)


@dataclass
class Snapshot:
    """Of that step; `began` and `commits_at` once it is sent."""

    step: int
    is_fresh: bool
    began: float = math.inf
    commits_at: float = math.inf


@dataclass
class World:
    """The machine, driven by a strategy that sees to the notice."""

    case: Case
    strategy: Callable[[World], None]
    now: float = 0.0
    step: int = 0
    committed: int = 0
    has_saved: bool = False
    flight: Snapshot | None = None
    sealed: Snapshot | None = None
    told: Plan | None = None
    is_awaited: bool = False
    asked_at: float | None = None
    holds: bool = False
    stopped: bool = False
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    pace: Pace | None = None
    passed: list[float] = field(default_factory=list)
    _boundaries: Boundaries = field(default_factory=Boundaries)
    _staging: tuple[float, Snapshot] | None = None
    _next_boundary: float = 0.0
    _next_tick: float = math.inf
    _next_sample: float = math.inf
    _last_periodic: float = 0.0

    def run(self) -> int:
        """The step that is committed when the machine is gone."""
        self._next_tick, self._next_boundary = self.case.notice_at, self.case.interval_s(0)
        while (at := min(self._events())) <= self.case.gone_at:
            staged, committed, boundary, tick, _ = (moment == at for moment in self._events())
            self._move(at)
            if staged:
                self._seal()
            if committed:
                self._commit()
            if boundary:
                self._reach()
            if self.now >= self.case.notice_at and (staged or committed or boundary or tick):
                self.strategy(self)
                self._next_tick = self.now + TICK_S
            self._send()
        return self.committed

    def ask(self, plan: Plan) -> None:
        """Tells the trainer."""
        self.told = plan
        if plan in ("snapshot", "last"):
            self.is_awaited, self.asked_at = True, self.now
        self.stopped = self.stopped or plan == "stop"

    def abandon(self) -> None:
        """Gives up what is being sent."""
        self.bandwidth.end(self.now, whole=False)
        self.flight = None

    def left_bytes(self) -> int:
        """Of what is being sent."""
        assert self.flight is not None
        return int(max(0.0, self.case.size_bytes - self.case.line.carried(self.flight.began, self.now)))

    def _events(self) -> tuple[float, float, float, float, float]:
        return (
            self._staging[0] if self._staging else math.inf,
            self.flight.commits_at if self.flight else math.inf,
            math.inf if self.stopped or self._staging else self._next_boundary,
            self._next_tick,
            self._next_sample if self.flight else math.inf,
        )

    def _move(self, at: float) -> None:
        self.now = at
        if self.flight is not None:
            self.bandwidth.sent(at, self.case.size_bytes - self.left_bytes())
            self._next_sample = at + SAMPLE_S

    def _send(self) -> None:
        if self.flight is None and self.sealed is not None and not self.holds:
            self.flight, self.sealed = self.sealed, None
            self.flight.began = self.now
            self.flight.commits_at = self.case.line.when(self.now, self.case.size_bytes) + COMMIT_S
            self._next_sample = self.now + SAMPLE_S
            self.bandwidth.begin(self.now)

    def _reach(self) -> None:
        self.step += 1
        self.passed.append(self.now)
        self.pace = self._boundaries.passed(self.step, self.now)
        self._next_boundary = self.now + self.case.interval_s(self.step)
        periodic = self.told is None and self.now - self._last_periodic >= self.case.every_s
        if not self.is_awaited and not periodic:
            return
        self._last_periodic = self.now
        self._staging = self.now + self.case.copy_s, Snapshot(self.step, self.is_awaited)
        self._next_boundary += self.case.copy_s
        self.stopped = self.stopped or (self.is_awaited and self.told == "last")

    def _seal(self) -> None:
        assert self._staging is not None
        self.sealed, self._staging = self._staging[1], None
        self.is_awaited = self.is_awaited and not self.sealed.is_fresh

    def _commit(self) -> None:
        assert self.flight is not None
        self.bandwidth.end(self.now)
        self.committed = max(self.committed, self.flight.step)
        self.has_saved = self.has_saved or self.flight.is_fresh
        self.flight = None


def last_periodic(world: World) -> None:
    """Takes no notice of notices."""


def at_once(world: World) -> None:
    """One snapshot at the next boundary, after what is under way; then the training stops."""
    if world.told is None:
        world.ask("last")


def planned(world: World) -> None:
    """As the agent does."""
    decision = decide(_situation(world))
    world.holds = decision.sending == "hold"
    if decision.sending == "abandon":
        world.abandon()
    if world.told in ("last", "stop") or (decision.plan == "snapshot" and world.is_awaited):
        return
    if decision.plan == "continue":
        world.told = world.told or "continue"
    else:
        world.ask(decision.plan)


def _situation(world: World) -> Situation:
    case, flight, sealed, pace = world.case, world.flight, world.sealed, world.pace
    deadline = None if case.lead_s is None else case.notice_at + case.lead_s
    return Situation(
        notice=Notice("spot", "terminate", deadline, "n"),
        now=world.now,
        seen_s=world.now - case.notice_at,
        reserve_s=case.reserve_s,
        snapshot_bytes=case.size_bytes,
        bandwidth=world.bandwidth.estimate(world.now),
        copy_s=case.copy_s,
        commit_s=COMMIT_S,
        flight=Flight(world.left_bytes(), is_ours=flight.began >= case.notice_at) if flight else None,
        sealed_bytes=case.size_bytes if sealed else 0,
        sealed_is_fresh=sealed is not None and sealed.is_fresh,
        boundary_s=pace.next_s(world.now) if pace else None,
        step_s=pace.usual_s if pace else 0.0,
        asked_s=None if world.asked_at is None else world.now - world.asked_at,
        is_awaited=world.is_awaited,
        has_saved=world.has_saved,
    )


def undisturbed(world: World) -> None:
    """Trains on without ever saving again."""
    world.told = world.told or "continue"


def oracle(ideal: World) -> int:
    """The best of who knows the future, and so needs no reserve.

    Args:
        ideal: the machine on which training went on to the end.
    """
    case, fresh = ideal.case, 0
    for step, at in enumerate(ideal.passed, start=1):
        if at >= case.notice_at and case.line.when(at + case.copy_s, case.size_bytes) + COMMIT_S <= case.gone_at:
            fresh = step
    return max(fresh, ideal.committed)


@dataclass(frozen=True)
class Outcome:
    """What each strategy had committed, as a step, and when the training passed its steps if nothing held it up."""

    case: Case
    passed: Sequence[float]
    committed: Mapping[str, int]

    def lost_steps(self, strategy: str) -> int:
        """Those that the training could have made until the end, but for those that are committed."""
        return len(self.passed) - self.committed[strategy]

    def lost_s(self, strategy: str) -> float:
        """The same in seconds of training."""
        times = [0.0, *self.passed]
        return times[-1] - times[self.committed[strategy]]


def replay(case: Case) -> Outcome:
    """Lets every strategy have its go."""
    ideal = World(case, undisturbed)
    ideal.run()
    periodic = World(case, last_periodic).run()
    committed = {
        ORACLE: max(oracle(ideal), periodic),
        PLANNER: World(case, planned).run(),
        AT_ONCE: World(case, at_once).run(),
        PERIODIC: periodic,
    }
    return Outcome(case, ideal.passed, committed)
