"""The data position: which epoch, which loop of it, which batch, and the generators that the order depends on.

A batch order cannot be restored by setting the generators to where they were at the snapshot: the order was drawn
earlier. So a loop remembers the generators' state at its start. A resume sets that state, makes a new iterator, draws
and drops the batches that were consumed, and sets the state of the snapshot.

A program is resumed by running it again: loops that were over at the snapshot yield nothing, the one that was running
goes on, and when it does the loops have *arrived*. Loops are told apart by their place (`places.Place`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from types import GeneratorType
from typing import Any, Generic, TypeVar

from spotckpt.errors import MismatchError, UsageError
from spotckpt.training import replay
from spotckpt.training.generators import Generators
from spotckpt.training.iterators import Iterators, Resume
from spotckpt.training.places import Place, Target
from spotckpt.training.rng import Generator

T = TypeVar("T")


class Batches(Generic[T]):
    """What `Position.batches` returns: iterate it once; `len` is the loader's."""

    def __init__(self, loader: Iterable[T], run: Callable[[], Iterator[T]]) -> None:
        self._loader = loader
        self._run = run

    def __iter__(self) -> Iterator[T]:
        return self._run()

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]


class Position:
    """Where a training is in its loops. Drives `run.epochs`, `run.batches` and `run.steps`.

    It owns the state of all generators: the global ones and those that are watched are in `state()`, and are put back
    at the moment when the loops arrive at the loaded position.

    Args:
        say: told, once each, what a resume cannot reproduce.
        progress: called as `progress(done, total)` while batches are replayed; may raise to stop.
    """

    def __init__(self, *, say: Callable[[str], None], progress: replay.Progress = lambda done, total: None) -> None:
        self._said: set[str] = set()
        self._tell = say
        self._generators = Generators(self._say)
        self._iterators = Iterators(self._generators, say=self._say, progress=progress)
        self._place = Place()
        self._left_by = ""
        self._active: dict[str, Any] | None = None
        self._ended_steps: dict[str, int] | None = None
        self._once: weakref.WeakSet[Any] = weakref.WeakSet()
        self._token: object = None
        self._in_epochs = False
        self._in_body = False
        self._target: Target | None = None

    @property
    def epoch(self) -> int:
        """The epoch that `epochs` yielded last; after its end the next one; 0 without epochs."""
        return self._place.epoch

    @property
    def has_epochs(self) -> bool:
        """Whether `epochs` was called."""
        return self._place.loop > 0

    @property
    def batch(self) -> int:
        """In a loop's body the index of its batch, at the boundary after it the number consumed; 0 outside."""
        return self._active["count"] if self._active else 0

    @property
    def in_body(self) -> bool:
        """Whether a batch or step is being worked on: a snapshot taken now would hold it half done."""
        return self._in_body

    @property
    def resuming(self) -> bool:
        """Whether a position was loaded and the loops have not arrived there yet."""
        return self._target is not None

    def watch(self, name: str, generator: Generator) -> None:
        """Makes a tracked generator part of the position: it may govern the order of batches."""
        self._generators.watch(name, generator)

    def state(self) -> dict[str, Any]:
        """The position and all generators' states, encodable; while `resuming`, what was loaded."""
        if self._target is not None:
            return dict(self._target.state)
        return {
            "place": asdict(self._place),
            "left_by": self._left_by,
            "active": dict(self._active) if self._active else None,
            "ended_steps": dict(self._ended_steps) if self._ended_steps else None,
            "warm": sorted(self._iterators.warm),
            "generators": self._generators.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over a decoded `state()`; before the first loop. The loops then lead there."""
        assert self._place == Place(), "a position is loaded before the first loop"
        self._target = Target(state)
        if state["generators"] is not None:  # another program's checkpoint may not have them
            self._generators.load(state["generators"])
        self._iterators.warm = set(state["warm"])

    def begin_without_loops(self) -> None:
        """A boundary before any loop: an imported position has no loop to lead to."""
        if self._target is not None and self._target.is_imported:
            self.arrive()

    def arrive(self) -> None:
        """Puts the generators of a loaded position back now, for a program without our loops. Idempotent."""
        if self._target is not None:
            self._target = None
            self._generators.arrive()

    def finish(self) -> None:
        """Ends open loops as `break` does, for the last snapshot of a run that is finished."""
        if self._target is not None:
            # The program ended before it came to where the snapshot was taken: it does not go back there.
            self._place = max(self._place, self._target.place)
            self.arrive()
        self._end_call(self._token)
        if self._in_epochs:
            self._leave_epochs("break")

    # Epochs

    def epochs(self, num_epochs: int, *, on_epoch_end: Callable[[], None]) -> Iterator[int]:
        """Yields the epochs that are left; after each body the position is the next epoch, then `on_epoch_end()`.

        A loop that was left by `break` yields nothing after a resume; one that was exhausted goes on if `num_epochs`
        is larger now.
        """
        self._enter_epochs(num_epochs)
        try:
            while self._in_epochs and self._place.epoch < num_epochs:
                yield self._place.epoch
                if not self._in_epochs:
                    return
                self._move(Place(self._place.loop, self._place.epoch + 1))
                self._check_not_passed()
                on_epoch_end()
        except GeneratorExit:
            if self._in_epochs:
                self._leave_epochs("break")
            raise
        if self._in_epochs:
            self._leave_epochs("end")

    def _enter_epochs(self, num_epochs: int) -> None:
        if self._in_epochs or self._token is not None:
            raise UsageError("run.epochs inside another loop of the run", hint="use a plain range for the inner loop")
        self._target = self._target and self._target.in_epochs()
        self._move(self._place)
        self._check_not_passed()
        place = Place(self._place.loop + 1)
        self._in_epochs = True
        self._left_by = ""
        target = self._target
        if target is None or place.loop > target.place.loop:
            self._move(place)
        elif place.loop < target.place.loop:
            self._leave_epochs("end", place)
        else:
            self._enter_target_epoch(target, num_epochs)

    def _enter_target_epoch(self, target: Target, num_epochs: int) -> None:
        place = Place(target.place.loop, target.place.epoch)
        more = num_epochs > place.epoch
        if target.place.over and not (more and target.left_by == "end"):
            self._leave_epochs(target.left_by, place)
        elif target.place.over or not more:
            # More epochs than the finished run had, or fewer than are done.
            self._place = place
            self.arrive()
        else:
            self._move(place)

    def _leave_epochs(self, how: str, place: Place | None = None) -> None:
        self._in_epochs = False
        self._left_by = how
        self._move(replace(place or self._place, over=True, calls=0))

    # Loops inside

    def batches(self, loader: Iterable[T], *, resume: Resume = "replay", on_boundary: Callable[[], None]) -> Batches[T]:
        """Yields the batches that are left; `on_boundary()` after each body, before the next batch is fetched.

        Raises:
            UsageError: two loops at once, or an iterator whose start cannot be repeated.
            MismatchError: on resume, when the loader has fewer batches than were consumed.
        """
        if resume not in ("replay", "skip"):
            raise UsageError(f"resume={resume!r} is unknown", hint="use 'replay' (exact) or 'skip' (fast)")
        replay.require_repeatable(loader)
        return Batches(loader, lambda: self._batches(loader, resume, on_boundary))

    def _batches(self, loader: Iterable[T], resume: Resume, on_boundary: Callable[[], None]) -> Iterator[T]:
        token = self._enter_call(loader)
        try:
            slot = self._place.slot
            self._iterators.sight(slot, loader)
            if self._is_over():
                return
            iterator = self._start(loader, slot, resume)
            while self._token is token:
                try:
                    self._in_body = True
                    yield next(iterator)
                except StopIteration:
                    if self.batch == 0:
                        self._say("warning: run.batches was given a loader without a single batch")
                    return
                self._after_body(token, on_boundary)
        finally:
            self._end_call(token)

    def steps(self, num_steps: int, *, on_boundary: Callable[[], None]) -> Iterator[int]:
        """Yields the steps that are left, counted from 0; `on_boundary()` after each body."""
        self._target = self._target and self._target.in_steps()
        token = self._enter_call(None)
        exhausted = None
        try:
            if self._is_over() and not self._has_more_steps(num_steps):
                return
            first = self._first_step()
            self._active = {"kind": "steps", "count": first, "start": None, "cold": True}
            for step in range(first, num_steps):
                self._in_body = True
                yield step
                if self._token is not token:
                    return
                self._after_body(token, on_boundary)
            exhausted = {"call": self._place.calls, "count": max(first, num_steps)}
        finally:
            self._end_call(token, ended_steps=exhausted)

    def _after_body(self, token: object, on_boundary: Callable[[], None]) -> None:
        if self._token is token and self._active is not None:
            self._in_body = False
            self._active = {**self._active, "count": self._active["count"] + 1}
            on_boundary()

    def _enter_call(self, loader: object) -> object:
        if self._token is not None:
            raise UsageError(
                "run.batches or run.steps inside another one that is not over",
                hint="use the plain loader in the inner loop, and do not zip two of them",
            )
        if isinstance(loader, GeneratorType):
            if loader in self._once:
                raise UsageError(
                    "the same generator is iterated by a second run.batches: a resume could not find its place",
                    hint="make a new one each time, or give run.batches the loader it draws from",
                )
            self._once.add(loader)
        self._move(self._place)
        self._check_not_passed()
        self._token = object()
        return self._token

    def _end_call(self, token: object, *, ended_steps: dict[str, int] | None = None) -> None:
        if token is None or self._token is not token:
            return
        self._token = self._active = None
        self._in_body = False
        self._ended_steps = ended_steps
        self._move(replace(self._place, calls=self._place.calls + 1))

    def _is_over(self) -> bool:
        target = self._target
        return target is not None and self._place < target.place

    def _has_more_steps(self, num_steps: int) -> bool:
        """Whether the loop that is over is the last one, ended by its number of steps, and has more of them now."""
        target = self._target
        assert target is not None
        ended = target.ended_steps
        return (
            ended is not None
            and target.active is None
            and target.place == replace(self._place, calls=self._place.calls + 1)
            and ended["call"] == self._place.calls
            and num_steps > ended["count"]
        )

    def _first_step(self) -> int:
        """Where a `steps` loop goes on; arrives there."""
        target = self._target
        if target is None:
            return 0
        count = target.ended_steps["count"] if self._is_over() and target.ended_steps else target.count("steps")
        self.arrive()
        return count

    def _move(self, place: Place) -> None:
        """Goes to a place between loops, and arrives if it is the loaded one."""
        if place.calls == 0:
            self._ended_steps = None
        self._place = place
        target = self._target
        if target is not None and place == target.place and target.active is None:
            self._ended_steps = target.ended_steps
            self.arrive()

    def _check_not_passed(self) -> None:
        # Asked where the program goes on, not where a loop ends: that may be by an error, which must not be replaced.
        target = self._target
        if target is not None and self._place > target.place:
            raise MismatchError(
                f"data position: the snapshot was taken at {target.place}, and the program passed by without that loop",
                hint="resume with the loops that the snapshot was taken in, or start afresh with @start",
            )

    def _start(self, loader: Iterable[T], slot: str, resume: Resume) -> Iterator[T]:
        """An iterator at the first batch that is left; sets `_active`; arrives if it was loaded."""
        target = self._target
        saved = target.active if target else None
        self._active = self._iterators.begin(loader, slot, saved, target.count("batches") if target else 0)
        iterator = self._iterators.make(loader, slot, self._active, resume=resume, resuming=target is not None)
        self.arrive()
        return iterator

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._tell(text)
