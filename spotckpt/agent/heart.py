"""An attempt's sign of life, written by a thread of its own: uploads and stuck trainers do not hold it up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from spotckpt.agent.log import about
from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import SnapshotError, SpotckptError
from spotckpt.snapshot.attempts import is_superseded, write_heartbeat
from spotckpt.snapshot.catalog import read_heartbeat
from spotckpt.snapshot.losses import Reached
from spotckpt.snapshot.records import Heartbeat, Holder
from spotckpt.store.base import Store

_LOG = logging.getLogger(__name__)


class Heart:
    """Beats until it is released or stopped; the release is the last thing it writes.

    Args:
        attempt: whose.
        holder: this agent and the trainer.
        interval_s: between two beats.
        store: the store to write to now.
        last_committed: the newest acknowledged snapshot.
        reached: how far the training has come.
        ended: why the attempt is over, for the release.
        on_superseded: called, on the heart's thread, when a later claim is seen; nothing is written any more.
        adopted: another agent has written before us: go on counting from there.
    """

    def __init__(
        self,
        attempt: int,
        holder: Holder,
        *,
        interval_s: float,
        store: Callable[[], Store],
        last_committed: Callable[[], str | None],
        reached: Callable[[], Reached | None],
        ended: Callable[[], str],
        on_superseded: Callable[[], None],
        adopted: bool,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._attempt = attempt
        self._holder = holder
        self._interval_s = interval_s
        self._store = store
        self._last_committed = last_committed
        self._reached = reached
        self._why_ended = ended
        self._on_superseded = on_superseded
        self._adopted = adopted
        self._clock = clock
        self._count = 0
        self._ended = False
        self._failing = False
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heart-{attempt}", daemon=True)

    def start(self) -> None:
        """Begins to beat, at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends without a word; a beat under way may still land."""
        self._stopping.set()

    def beat(self) -> None:
        """Writes one, unless the heart has ended. A failure is logged; the next beat comes anyway."""
        self._write(released=False)

    def release(self) -> bool:
        """Writes the last one, which lets the next attempt start at once; whether it could be written."""
        self.stop()
        return self._write(released=True)

    def _run(self) -> None:
        with about(run=self._store().uri, attempt=self._attempt):
            while not self._stopping.is_set():
                try:
                    self.beat()
                except Exception:  # noqa: BLE001  the top of a thread: an attempt without a heart would look dead
                    _LOG.exception("a heartbeat of attempt %d failed", self._attempt)
                self._stopping.wait(self._interval_s)

    def _write(self, *, released: bool) -> bool:
        deadline = Deadline.after(max(5.0, 2 * self._interval_s), self._clock)
        with self._lock:
            if self._ended:
                return False
            try:
                overtaken = is_superseded(self._store(), self._attempt, deadline=deadline)
                if not overtaken:
                    write_heartbeat(self._store(), self._next(released, deadline), deadline=deadline)
            except SpotckptError as error:
                self._log_failure(error)
                self._ended = released
                return False
            self._ended = released or overtaken
            self._failing = False
        if overtaken:
            self.stop()
            self._on_superseded()
        return not overtaken

    def _next(self, released: bool, deadline: Deadline) -> Heartbeat:
        if self._adopted and self._count == 0:
            with suppress(SnapshotError):  # a damaged one is written over
                found = read_heartbeat(self._store(), self._attempt, deadline=deadline)
                self._count = 0 if found is None else found.count
        self._count += 1
        last = self._last_committed()
        return Heartbeat(
            self._attempt,
            self._count,
            self._clock.wall(),
            released,
            last,
            holder=self._holder,
            interval_s=self._interval_s,
            reached=self._reached(),
            ended=self._why_ended() if released else "",
        )

    def _log_failure(self, error: SpotckptError) -> None:
        if not self._failing:
            self._failing = True
            _LOG.warning("heartbeat of attempt %d cannot be written: %s", self._attempt, error)
