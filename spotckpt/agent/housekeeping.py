"""Prunes a run after its commits, on a thread of its own: no upload waits for it, and it rests longer than it works."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from spotckpt.config import Keep
from spotckpt.deadline import Clock
from spotckpt.errors import Denied, SnapshotError, SpotckptError, Superseded
from spotckpt.snapshot.attempts import is_superseded
from spotckpt.snapshot.prune import Known, Pruning, prune
from spotckpt.store.base import Store

_LOG = logging.getLogger(__name__)

LEAST_PAUSE_S = 1.0
PAUSE_PER_WORK = 20.0


class Housekeeper:
    """Keeps what the policy says. It stops for good when deleting is denied or the attempt is superseded.

    Args:
        keep: what is kept; None does nothing at all.
        attempt: whose.
        store: the store now.
        require_ours: raises Superseded once a later attempt is known.
        tell: told what the user should know.
        name: of the attempt, for the log.
        clock: for its pauses.
    """

    def __init__(
        self,
        keep: Keep | None,
        *,
        attempt: int,
        store: Callable[[], Store],
        require_ours: Callable[[], None],
        tell: Callable[[str], None],
        name: str,
        clock: Clock,
    ) -> None:
        self._keep = keep
        self._attempt = attempt
        self._store = store
        self._require_ours = require_ours
        self._tell = tell
        self._name = name
        self._clock = clock
        self._known: Known = {}
        self._told = ""
        self._changed = threading.Condition()
        self._due = self._ended = False
        self._thread: threading.Thread | None = None

    def committed(self) -> None:
        """There is a snapshot more."""
        if self._keep is None:
            return
        with self._changed:
            self._due = not self._ended
            if self._due and self._thread is None:
                thread = threading.Thread(target=self._work, name=f"prune-{self._attempt}", daemon=True)
                with suppress(RuntimeError):  # no thread to be had: after the next snapshot
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()

    def end(self) -> None:
        """The attempt is over: what is due is still done, without a pause. If the machine goes meanwhile, so be it."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _work(self) -> None:
        rest_until = self._clock.now()
        while self._wait(rest_until):
            began = self._clock.now()
            try:
                if not self._prune():
                    return
            except Superseded as error:
                _LOG.info("%s: prunes no more: %s", self._name, error.message)
                return
            except Exception:  # noqa: BLE001  the top of a thread: nobody else would tell
                _LOG.exception("%s: a fault while pruning", self._name)
                return
            now = self._clock.now()
            rest_until = now + max(LEAST_PAUSE_S, PAUSE_PER_WORK * (now - began))

    def _wait(self, rest_until: float) -> bool:
        """Whether there is something to do; returns when there is, and when there will not be."""
        with self._changed:
            while not self._ended and (not self._due or self._clock.now() < rest_until):
                self._changed.wait(max(0.0, rest_until - self._clock.now()) if self._due else None)
            due, self._due = self._due, False
            return due

    def _prune(self) -> bool:
        """Whether it may be of use to do it again."""
        try:
            found = prune(self._store(), self._keep, known=self._known, may_delete=self._may_delete, clock=self._clock)
        except Denied as error:
            self._say(f"old snapshots stay: {error}; or prune elsewhere with spotckpt prune")
            return False
        except SnapshotError as error:
            self._say(f"nothing is pruned: {error}")
        except SpotckptError as error:
            _LOG.info("%s: pruning is tried again after the next snapshot: %s", self._name, error)
        else:
            self._log(found)
        return True

    def _may_delete(self) -> None:
        self._require_ours()
        if is_superseded(self._store(), self._attempt):
            raise Superseded(f"attempt {self._attempt + 1} prunes now")

    def _say(self, message: str) -> None:
        if message != self._told:
            self._told = message
            _LOG.warning("%s: %s", self._name, message)
            self._tell(message)

    def _log(self, found: Pruning) -> None:
        for note in found.notes:
            _LOG.debug("%s: %s", self._name, note)
        what = "pruned %d snapshots, %d objects (%d bytes), %d unfinished uploads"
        counts = len(found.plan.drop), len(found.objects), found.freed_bytes, len(found.uploads)
        _LOG.log(logging.INFO if found else logging.DEBUG, f"%s: {what}", self._name, *counts)
