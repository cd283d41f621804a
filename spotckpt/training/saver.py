"""Decides at each point of a training whether a snapshot is taken, and ends the run as its last step went."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from spotckpt.config import Settings
from spotckpt.deadline import Deadline
from spotckpt.errors import AgentError, EncodeError, Interrupted, SpoolError, SpotckptError, Superseded
from spotckpt.snapshot.metrics import History
from spotckpt.training.capture import Capture
from spotckpt.training.news import Stop
from spotckpt.training.say import say, say_error
from spotckpt.training.schedule import Evaluation, Schedule
from spotckpt.training.session import Drained, Session
from spotckpt.training.signals import children_waiting
from spotckpt.training.staging import Facts, Stager, Torn

FINAL_WAIT_S = 3600.0  # a finished training waits long for its last snapshot, but not for ever
LEAVE_WAIT_S = 120.0  # after an exception: the agent goes on by itself when this is over
SLOT_WAIT_S = 60.0  # for snapshots that somebody asked for
BUSY_RETRY_S = 0.5
FAILED_RETRY_S = 10.0

_SURVIVED = (SpoolError, MemoryError, torch.cuda.OutOfMemoryError)


@contextmanager
def collector_resting() -> Iterator[None]:
    """No garbage is looked for inside: among the tuples of ten thousand tensors that costs more than making them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class State(Protocol):
    """What a saver needs of a run."""

    @property
    def step(self) -> int:
        """Boundaries counted."""

    def capture(self) -> Capture:
        """The whole state, uncopied."""

    def facts(self) -> Facts:
        """What the manifest says besides."""

    @property
    def metrics(self) -> History:
        """What was logged."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Nothing but their steps changes what they own."""


class Saver:
    """Takes the snapshots of one run that this process holds the attempt of."""

    def __init__(self, session: Session, settings: Settings, state: State, evaluation: Evaluation) -> None:
        self.session = session
        self._state = state
        self._evaluation = evaluation
        self._stager = Stager(session, settings.overlap)
        self._schedule = Schedule(settings.every, state.step)
        self._newest: str | None = None
        self._reason = ""
        self._again: str | None = None
        self._tears = False
        self._failure = ""
        self._pause: Deadline | None = None
        self._has_sealed = False
        self.requested = False
        self.released = False
        self.skipped = 0

    def point(self) -> None:
        """A point between two optimizer steps. Cheap when nothing is due: one flag and one read of a clock.

        Raises:
            Interrupted: a notice or SIGTERM; everything that could be saved is saved.
            Superseded: another attempt owns the run; nothing more is written.
            SpotckptError: the state cannot be saved, or the agent cannot.
        """
        session = self.session
        session.passed(self._state.step)
        if self._stager.under_way:
            with children_waiting():
                self._settle()
        if session.news.attention:
            session.news.raise_pending()
            if session.news.stop is not None:
                with children_waiting():
                    self._interrupt(session.news.stop)
        if self._pause is None or self._pause.passed:
            reason = self._due()
            if reason is not None:
                with children_waiting():
                    self._save(reason)

    def prepare(self, captured: Capture) -> None:
        """Makes room for snapshots of that size, in the background."""
        self._stager.prepare(captured)

    def join(self) -> None:
        """Returns when the training may change what it likes, without a step of an optimizer."""
        self._stager.join()

    def finish(self) -> None:
        """Commits the final snapshot and releases the run.

        Raises:
            Interrupted: the machine goes before it could be committed.
            Superseded: another attempt owns the run.
            SpotckptError: it could not be committed.
        """
        with children_waiting():
            self._settle(ending=True)
        if self.session.news.attention:
            self.session.news.raise_pending()
        stop = self.session.news.stop
        wait = stop.deadline if stop is not None and stop.deadline else Deadline.after(FINAL_WAIT_S)
        with children_waiting():
            staged = self._stage("final", finished=True, wait=wait)
        drained = self._release(wait.seconds_left, why="finished")
        self._raise_if_superseded(drained)
        if staged is None or drained.committed != staged:
            if stop is not None:
                raise Interrupted(_stopped(stop, drained))
            raise drained.error or AgentError(
                f"the final snapshot of {self.session.uri} is not committed (last: {drained.committed or 'none'})",
                hint="start again: it goes on from the last one",
            )
        say(f"finished {self.session.uri} at step {self._state.step}: {staged}")

    def leave(self, error: BaseException, *, base: str | None = None) -> None:
        """After an exception: captures nothing, waits (bounded) for the newest sealed snapshot, releases the run.

        What goes wrong is said, not raised: the exception under way is the one to see.

        Args:
            error: the exception. Of their own Ctrl-C users are told what is left.
            base: the snapshot that this attempt went on from.
        """
        if self.released:
            return
        try:
            self._settle(ending=True)
            if self._newest is not None and self._newest != self.session.news.committed:
                say(f"waiting up to {LEAVE_WAIT_S:.0f} s until {self._newest} is committed; Ctrl-C stops waiting")
            stop = self.session.news.stop
            wait_s = LEAVE_WAIT_S if stop is None or not stop.deadline else stop.deadline.seconds_left
            drained = self._release(wait_s, why=stop.why if stop is not None else _why(error))
            _say_failure(drained)
            if isinstance(error, KeyboardInterrupt):
                last = drained.committed or self.session.news.committed or base or "none"
                say(
                    "interrupted by Ctrl-C: nothing of the present step is captured; "
                    f"the last committed snapshot is {last}"
                )
        except KeyboardInterrupt:
            say("not waiting any longer; the agent goes on as long as it can")
        except SpotckptError as trouble:
            if self.session.news.superseded is None:  # else its run is another's by now
                say_error(trouble)
        except Superseded as superseded:
            say(superseded.message)

    def close(self) -> None:
        """Hangs up. Idempotent."""
        self._stager.close()
        self.session.close()

    def _due(self) -> str | None:
        if self._again is not None:
            return self._again
        if self.session.news.early:
            return "notice"
        if self.requested:
            return "manual"
        if self._evaluation.improved:
            return "best"
        if self.session.news.leaving is None and self._schedule.due(self._state.step):
            return "periodic"
        return None

    def _save(self, reason: str) -> None:
        wait = None if reason == "periodic" else Deadline.after(SLOT_WAIT_S)
        try:
            staged = self._stage(reason, wait=wait, optimizers=() if self._tears else self._state.optimizers)
        except _SURVIVED as error:
            self._survive(error)
            return
        if staged is None:
            self.skipped += 1
            self._schedule.postpone(BUSY_RETRY_S)
            return
        self._has_sealed = self._has_sealed or not self._stager.under_way
        self._schedule.restart(self._state.step)
        self.requested = self.session.news.early = False
        self._evaluation.improved = False
        self._again = None

    def _stage(
        self,
        reason: str,
        *,
        finished: bool = False,
        wait: Deadline | None = None,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> str | None:
        heard = self.session.news.history()
        if heard is not None:
            self._state.metrics.committed(*heard)
        with collector_resting():
            staged = self._stager.stage(
                self._state.capture(),
                self._state.facts(),
                self._state.metrics,
                reason=reason,
                finished=finished,
                wait=wait,
                optimizers=optimizers,
            )
        self._newest = staged or self._newest
        self._reason = reason
        return staged

    def _settle(self, *, ending: bool = False) -> None:
        """The end of the copy that an earlier boundary began.

        Args:
            ending: what went wrong is only said.
        """
        try:
            self._stager.settle()
        except Torn as torn:
            # the weights that were the best are gone; what can be had is the present state
            self._again = "periodic" if self._reason == "best" else self._reason
            self._tears = True
            self._newest = None
            say(
                f"warning: {torn} is dropped: something else than optimizer.step() changed weights while they were "
                "copied; from here on they are copied before the training goes on (as with overlap=False)"
            )
        except _SURVIVED as error:
            self._again = self._reason
            self._newest = None
            self._survive(error, ending=ending)
        else:
            self._has_sealed = self._has_sealed or self._newest is not None

    def _survive(self, error: Exception, *, ending: bool = False) -> None:
        """A training that could be staged once is not ended by a spool or a memory that is full later.

        Raises:
            SpoolError: nothing could be staged yet: it would not be better later.
        """
        if isinstance(error, SpoolError) and not self._has_sealed and not ending:
            raise error
        text = str(error) or type(error).__name__
        if text != self._failure:
            self._failure = text
            say(f"warning: {text}; training goes on without this snapshot")
        self._pause = Deadline.after(FAILED_RETRY_S)

    def _interrupt(self, stop: Stop) -> None:
        """The last snapshot of this attempt, as far as the time goes; then the end."""
        try:
            if stop.snapshot:
                self._stage("notice", wait=stop.deadline or Deadline.after(SLOT_WAIT_S))
        except (EncodeError, SpoolError, MemoryError) as error:  # the last sealed one goes instead
            say_error(error) if isinstance(error, SpotckptError) else say(f"out of memory: {error}")
        try:
            drained = self._release(stop.deadline.seconds_left if stop.deadline else None, why=stop.why)
        except SpotckptError as error:
            say_error(error)
            drained = Drained(self.session.news.committed)
        self._raise_if_superseded(drained)
        _say_failure(drained)
        raise Interrupted(_stopped(stop, drained))

    def _release(self, seconds: float | None, *, why: str) -> Drained:
        drained = self.session.release(seconds, why=why)
        self.released = True
        return drained

    def _raise_if_superseded(self, drained: Drained) -> None:
        if self.session.news.superseded is not None:
            raise self.session.news.superseded
        if isinstance(drained.error, Superseded):
            raise drained.error


def _say_failure(drained: Drained) -> None:
    if isinstance(drained.error, Superseded):
        say(drained.error.message)
    elif drained.error is not None:
        say_error(drained.error)


def _why(error: BaseException) -> str:
    return "Ctrl-C" if isinstance(error, KeyboardInterrupt) else type(error).__name__


def _stopped(stop: Stop, drained: Drained) -> str:
    saved = f"{drained.committed} is committed" if drained.committed else "nothing was committed"
    return f"stopped by {stop.why}: {saved}; run again to go on"
