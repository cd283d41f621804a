"""The run: what a train function is given."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, overload

import torch

from spotckpt.address import Mode
from spotckpt.errors import SpotckptError, UsageError
from spotckpt.snapshot.metrics import Best, History
from spotckpt.training.capture import Capture, capture, check_encodable
from spotckpt.training.checks import check_mode, count_of, positive, step_of
from spotckpt.training.curves import HistoryView
from spotckpt.training.fetching import Saved
from spotckpt.training.iterators import Resume
from spotckpt.training.objects import with_article
from spotckpt.training.position import Position
from spotckpt.training.probe import probe_of_environment
from spotckpt.training.restore import MapLocation
from spotckpt.training.rng import GENERATOR_TYPES, restore_rng
from spotckpt.training.saver import Saver
from spotckpt.training.say import Progress, say
from spotckpt.training.schedule import Evaluation
from spotckpt.training.staging import Facts
from spotckpt.training.start import Beginning, claim_finished, fall_back, record_base
from spotckpt.training.tracking import Tracked
from spotckpt.training.vars import Vars

T = TypeVar("T")


class Run:
    """One training: what it tracks, where it is in its loops, what it measured, and its snapshots.

    Made by `resumable` and `open_run`. Use it from one thread.

    Attributes:
        resumed_from: the id of the snapshot that this attempt goes on from, or None.
        arguments: of the training, by name; in a fork with those that it sets.
        overrides: those that the fork sets, whatever the caller says.
        arguments_changed: the arguments that differ from those recorded there: name → (old, new).
        history: every metric, as in `run.history["valid"]["top1"]`: a sequence with `steps` and `epochs`; grows.
        vars: values of your own that belong to every snapshot.
    """

    def __init__(self, beginning: Beginning) -> None:
        saved = beginning.saved
        self.resumed_from: str | None = None if saved is None else str(saved.id)
        self.arguments = dict(beginning.request.arguments)
        self.overrides = dict(beginning.overrides)
        self.arguments_changed: dict[str, tuple[Any, Any]] = beginning.arguments_changed
        self._beginning = beginning
        self._history = History(say)
        self.history = HistoryView(self._history)
        self.vars = Vars(lambda path, value: check_encodable(value, path=path), say)
        self._position = Position(say=say, progress=Progress("drawing the epoch's first part again", "batches"))
        self._tracked = Tracked(saved, beginning.initial, say, fall_back=self._fall_back, check=beginning.check)
        self._evaluation = Evaluation(beginning.request.settings.keep_best)
        self._step = 0
        self._gradients: dict[str, dict[int, torch.Tensor]] = {}
        self._rng_before_loops: dict[str, Any] | None = None
        self._epoch_now = -1
        self._settled = self._encodable = self._over = self._finish_due = False
        if saved is not None:
            self._load(saved)
        self._saver = self._make_saver()
        self._probe = probe_of_environment()
        if self._probe is not None:
            self._probe.opened(self)

    # Where it is

    @property
    def step(self) -> int:
        """How many boundaries were passed, over all attempts."""
        return self._step

    @property
    def epoch(self) -> int:
        """The epoch that is trained, from 0; between epochs the next one."""
        return self._position.epoch

    @property
    def batch(self) -> int:
        """The batch of the epoch that is trained, from 0; 0 outside of `batches`."""
        return self._position.batch

    # What it is made of

    def track(
        self,
        *unnamed: object,
        strict: bool = True,
        map_location: MapLocation = None,
        override: Mapping[str, Sequence[str]] | None = None,
        optional: Collection[str] = (),
        drop: Collection[str] = (),
        **objects: object,
    ) -> None:
        """Makes the objects part of every snapshot and, when there is one to go on from, restores them in place.

        Args:
            unnamed: refused: each object needs a name of its own.
            strict: False skips keys and shapes of a module that do not fit, and lists them.
            map_location: where tensors go that are not copied into existing ones.
            override: keys whose present values win over the snapshot's: `{"optimizer": ["lr"]}`.
            optional: names of objects that the snapshot need not hold.
            drop: names in the snapshot that are left behind; an object tracked under one of them keeps its own state.
            objects: by name: what has `state_dict` and `load_state_dict`, generators, dictionaries and lists.

        Raises:
            EncodeError: a state that a snapshot cannot hold, named by its path.
            MismatchError: snapshot and objects do not fit.
            UsageError: a name is taken, or an object cannot be tracked.
        """
        if unnamed:
            raise UsageError(
                f"run.track was given {with_article(type(unnamed[0]).__name__)} without a name",
                hint="name each object: run.track(model=model, optimizer=optimizer)",
            )
        self._tracked.add(
            objects,
            strict=strict,
            map_location=map_location,
            override=override or {},
            optional=optional,
            drop=drop,
        )
        for name, obj in objects.items():
            if isinstance(obj, GENERATOR_TYPES):
                self._position.watch(name, obj)
        self._arrive_without_loops()

    # Loops

    def epochs(self, num_epochs: int) -> Iterator[int]:
        """Yields the epochs that are left of `num_epochs`. The end of each is a point for a snapshot."""
        return self._epochs(count_of("epochs", num_epochs))

    def _epochs(self, num_epochs: int) -> Iterator[int]:
        try:
            for epoch in self._bodies(self._position.epochs(num_epochs, on_epoch_end=self._point), counted=False):
                self._epoch_now = epoch
                yield epoch
        finally:
            self._epoch_now = -1

    def batches(self, loader: Iterable[T], *, resume: Resume | None = None) -> Batches[T]:
        """Yields the batches that are left of the epoch. The end of each iteration is a boundary.

        Args:
            loader: a DataLoader, a StatefulDataLoader or any iterable that is the same each time.
            resume: "replay" reads the batches before the position again, which is exact; "skip" skips them at the
                sampler. None is what the decorator says.
        """
        return Batches(self, loader, resume or self._beginning.request.resume)

    def steps(self, num_steps: int) -> Iterator[int]:
        """Yields the steps that are left of `num_steps`, from 0. The end of each iteration is a boundary."""
        num_steps = count_of("steps", num_steps)
        return self._bodies(self._position.steps(num_steps, on_boundary=self._next_step), counted=True)

    def boundary(self) -> None:
        """Marks a point between two optimizer steps, in a loop of your own; the other loops do it by themselves.

        Raises:
            Interrupted: the machine goes; what could be saved is saved. Let it pass.
            Superseded: another attempt owns the run. Let it pass.
            SpotckptError: the state cannot be saved.
        """
        if self._over:
            return
        self._position.begin_without_loops()
        self._settle()
        self._next_step()

    # Metrics

    def log(self, set: str, /, *, step: int | None = None, **values: object) -> None:
        """Appends to the history: `run.log("train", loss=loss.item())`.

        Logging the metric of `keep_best` on weights that no optimizer has changed since makes the next snapshot a best
        one, if it improved.

        Args:
            set: `train`, `valid`, ...
            step: where on the axis, from 0: an epoch, a sample, ...; by default `run.step`. Logged again at the same
                step a value takes the place of the one before; without `step`, at the same step of the same epoch.
            values: by name: numbers; or texts, arrays, tensors, lists and dictionaries of them.

        Raises:
            UsageError: a name that cannot be selected by, or a step that is none.
            EncodeError: a value that a snapshot cannot hold.
        """
        if self._probe is not None:
            self._probe.logged(set, values)
        evaluation, weights = self._evaluation, self._weights
        if weights != evaluation.updates:
            evaluation.weights_at(weights, self._history.mark)
        watched = evaluation.watched
        best = None if watched is None or watched.set != set else self._history.best(set, watched.name, watched.mode)
        if step is None:
            self._history.log(set, values, self._step, self._epoch_now)
        else:
            self._history.log(set, values, step_of(step), self._epoch_now, given=True)
        if watched is not None and watched.set == set and watched.name in values:
            value = self._history[set][watched.name].value
            evaluation.logged(value, None if best is None else best.value)

    def mean(self, set: str, name: str, epoch: int | None = None) -> float:
        """The mean over an epoch, by default the present one, whatever attempts it took; NaN without a value."""
        return self._history.mean(set, name, self._epoch_now if epoch is None else epoch)

    @overload
    def best(self, set: str, name: str, mode: Mode = "max") -> Best | None: ...
    @overload
    def best(self, set: str, name: str, mode: Mode = "max", *, k: int) -> list[Best]: ...
    def best(self, set: str, name: str, mode: Mode = "max", *, k: int | None = None) -> Best | list[Best] | None:
        """The best value so far (`value`, `step`, `epoch`), NaN ignored; None without a value.

        Args:
            k: the best k instead, the best first; of equals the earliest.
        """
        check_mode(mode)
        if k is None:
            return self._history.best(set, name, mode)
        return self._history.top(set, name, mode, positive("k", k))

    def improved(self, set: str, name: str, mode: Mode = "min", *, patience: int = 1, by: float = 0.0) -> bool:
        """Whether one of the last `patience` values is better than all before them; for early stopping and plateaus.

        It follows from the history alone, so it is the same after a resume. True as long as there are no more than
        `patience` values. NaN is never better.

        Args:
            by: how much better one must be.
        """
        check_mode(mode)
        return self._history.improved(set, name, mode, patience=positive("patience", patience), by=by)

    # Snapshots by hand

    def save(self) -> None:
        """Asks for a snapshot at the next boundary or end of an epoch."""
        if self._saver is not None:
            self._saver.requested = True

    def finish(self) -> None:
        """Ends the run: commits the final snapshot, after which loops yield nothing.

        In the body of `batches` or `steps` it waits for the end of this iteration, the next point at which the state is
        whole. A run that was finished inside of a loop stays so; one whose loops came to their end goes on when they
        are asked for more.
        """
        if self._position.in_body:
            self._finish_due = True
        else:
            self._finish()

    # Inside

    @property
    def tracked(self) -> Mapping[str, object]:
        """What is tracked, by name."""
        return self._tracked.objects

    @property
    def generators(self) -> Mapping[str, Any]:
        """The states of all generators that a snapshot would hold."""
        states: Mapping[str, Any] = self._position.state()["generators"]
        return states

    @property
    def _weights(self) -> int:
        """A number that moves when the weights do: optimizer steps; boundaries where no optimizer is tracked."""
        tracked = self._tracked
        return tracked.grads.steps_taken if tracked.has_optimizer else self._step

    def capture(self) -> Capture:
        """The whole state as it is now; tensors are the live ones."""
        return capture(
            self._tracked.objects,
            built=self._tracked.built,
            extra={
                "step": self._step,
                "at": {"epoch": self.epoch, "batch": self.batch},
                "position": self._position.state(),
                "vars": self.vars.state(),
                "gradients": self._gradients or self._tracked.grads.unconsumed(),
            },
        )

    @property
    def metrics(self) -> History:
        """What was logged."""
        return self._history

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Those whose steps are told of in advance, by a hook; none where they are replayed from a CUDA graph."""
        if self._tracked.grads.graphed:
            return ()
        return [one for one in self._tracked.objects.values() if isinstance(one, torch.optim.Optimizer)]

    def facts(self) -> Facts:
        """What a manifest says of this point besides the state."""
        return Facts(
            step=self._step,
            epoch=self.epoch if self._position.has_epochs else -1,
            latest=self._history.latest(),
            best=self._history.bests(),
            evaluated=self._history.latest(new=True),
            arguments=self._beginning.arguments,
            environment=self._beginning.environment,
        )

    def _load(self, saved: Saved) -> None:
        self._step = saved.own["step"]
        self._history.take(saved.own["metrics"])
        self._history.mark()
        self.vars.restore(saved.own["vars"])
        position = saved.own["position"]
        self._position.load(position)
        place, imported = position["place"], position.get("imported") is not None
        if place["loop"] == place["calls"] == 0 and position["active"] is None and not imported:
            self._rng_before_loops = position["generators"]["rng"]
        self._gradients = saved.own.get("gradients", {})

    def _fall_back(self, error: SpotckptError) -> Saved:
        """The snapshot is damaged: all of it that was restored so far is replaced by that of the next one."""
        saved = fall_back(self._beginning, error)
        self.resumed_from, self.arguments_changed = str(saved.id), self._beginning.arguments_changed
        self._rng_before_loops = None
        self._load(saved)
        self._saver = self._make_saver()
        return saved

    def _arrive_without_loops(self) -> None:
        """A snapshot taken before any loop of ours belongs to a program that only calls `boundary`: it is there now.

        Done at each `track`, since building the next object may draw random numbers.
        """
        if self._rng_before_loops is not None and not self._settled:
            self._position.arrive()
            restore_rng(self._rng_before_loops, say)

    def _make_saver(self) -> Saver | None:
        session = self._beginning.session
        return None if session is None else Saver(session, self._beginning.request.settings, self, self._evaluation)

    def _bodies(self, items: Iterable[T], *, counted: bool) -> Iterator[T]:
        """Hands the items out, and knows while a body runs.

        Args:
            items: from the position, which has its own idea of when to end.
            counted: an iteration that is left by `break` is a step too.
        """
        if self._over:
            return
        self._tracked.check_complete()
        try:
            for item in items:
                self._settle()
                self._restore_gradients()
                if self._probe is not None and not self._position.resuming:
                    self._probe.body(self, item, is_batch=counted)
                try:
                    yield item
                except GeneratorExit:
                    self._step += counted and not self._over
                    raise
        finally:
            if self._saver is not None:
                self._saver.join()  # what follows a loop may change weights without an optimizer

    def _settle(self) -> None:
        """Restoring is over: nothing of the snapshot is forgotten, and the attempt is ours from here on."""
        if self._settled:
            return
        self._tracked.check_complete()
        if self._beginning.finished:
            claim_finished(self._beginning)
            self._saver = self._make_saver()
        record_base(self._beginning)
        self._tracked.forget_snapshot()
        self._settled = True

    def _restore_gradients(self) -> None:
        """Once the loops have arrived: before that, a loop's own `zero_grad` may still come."""
        if self._gradients and not self._position.resuming:
            self._tracked.restore_gradients(self._gradients)
            self._gradients = {}

    def _next_step(self) -> None:
        self._step += 1
        self._point("step")

    def _point(self, at: Literal["step", "epoch"] = "epoch") -> None:
        """A point between two optimizer steps."""
        self.vars.settle()
        self._evaluation.weights_at(self._weights, self._history.mark)
        if self._probe is not None:
            self._probe.point(self, at)
        if self._finish_due:
            self._finish()
        elif self._saver is not None:
            if not self._encodable and self._tracked.has_stepped:
                self._saver.prepare(self.capture())  # optimizer state exists only since the first step
                self._encodable = True
            self._saver.point()

    def _check_complete(self) -> None:
        """Before a final snapshot: it must not lack what the snapshot before it holds."""
        if self._saver is not None and not self._over:
            self._tracked.check_complete()

    def _finish(self) -> None:
        if self._saver is not None and not self._over:
            self._settle()
            self._tracked.check_complete()
        self._over = True
        self._finish_due = False
        self._position.finish()
        if self._probe is not None:
            self._probe.ended(self)
        if self._saver is not None and not self._saver.released:
            self._say_what_is_missing()
            self._evaluation.weights_at(self._weights, self._history.mark)
            self._saver.finish()

    def _returned(self) -> None:
        """The function has returned: the run is over."""
        if not self._over:
            self._finish()

    def _say_what_is_missing(self) -> None:
        if not self._tracked.objects and not self.vars:
            say("warning: nothing was tracked, so the snapshots hold no model: run.track(model=model) makes it part")
        watched = self._beginning.request.settings.keep_best
        logged = self._history.latest()
        if watched is not None and watched.path not in logged:
            known = f"what was logged is {', '.join(sorted(logged))}" if logged else "nothing was logged"
            say(f"warning: keep_best={str(watched)!r}, and {watched.path} was never logged; {known}")

    def _left(self, error: BaseException) -> None:
        """The function has raised: what it left behind may be half a step, so nothing of it is captured."""
        if self._saver is not None:
            self._saver.leave(error, base=self.resumed_from)

    def _close(self) -> None:
        """Ends threads and hooks. Idempotent."""
        self._tracked.close()
        if self._saver is not None:
            self._saver.close()


class Batches(Generic[T]):
    """What `Run.batches` returns: iterate it once; `len` is the loader's."""

    def __init__(self, run: Run, loader: Iterable[T], resume: Resume) -> None:
        self._run = run
        self._batches = run._position.batches(loader, resume=resume, on_boundary=run._next_step)

    def __iter__(self) -> Iterator[T]:
        return self._run._bodies(self._batches, counted=True)

    def __len__(self) -> int:
        return len(self._batches)
