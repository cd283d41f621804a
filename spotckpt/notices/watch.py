"""Asks a source again and again in a thread of its own, and says what changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from spotckpt.notices.ec2 import Poll, State
from spotckpt.notices.notice import Notice

_LOG = logging.getLogger(__name__)

RETRY_LIMIT_S = 30.0
ABSENT_LIMIT_S = 300.0
STEADY_LOOKS = 3
"""So often in a row must a source that failed answer before that is told: one that comes and goes fills no log."""

_WELL: tuple[State, bool] = ("answers", False)


class Source(Protocol):
    """Where news comes from."""

    def poll(self) -> Poll:
        """One look; may take seconds, must not raise."""

    def close(self) -> None:
        """Lets go of what it holds; there will be no more looks."""


def next_delay_s(state: State, *, failures: int, interval_s: float) -> float:
    """Seconds until the next look, after that many looks in a row that ended in this state."""
    if state == "answers":
        return interval_s
    # an agent may begin before the network does: what is absent then is soon looked for again, too
    limit_s = RETRY_LIMIT_S if state == "failing" else ABSENT_LIMIT_S
    return float(min(interval_s * 2 ** min(failures - 1, 10), max(limit_s, interval_s)))


class Watcher:
    """Polls until it is stopped. A handler that fails is logged and does not end the watch.

    Args:
        source: asked in the watcher's thread.
        on_notices: told, in that thread, after every look, everything that is known.
        interval_s: between two looks while the source answers.
    """

    def __init__(self, source: Source, on_notices: Callable[[Sequence[Notice]], None], *, interval_s: float) -> None:
        self._source = source
        self._on_notices = on_notices
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._state: State | None = None
        self._told: set[tuple[State, bool]] = set()
        self._failures = self._well = 0
        self.first_look = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self, *, timeout_s: float = 0.0) -> None:
        """Ends the watch, after the look that may be under way; waits for that at most so long."""
        self._stopping.set()
        if self._thread.is_alive() and timeout_s > 0:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            delay = self._interval_s
            try:
                delay = self._look()
            except Exception:  # noqa: BLE001  the top of a thread: news must keep coming whatever a handler does
                _LOG.exception("a look for notices failed")
            self.first_look.set()
            self._stopping.wait(delay)
        self._source.close()

    def _look(self) -> float:
        poll = self._source.poll()
        self._failures = self._failures + 1 if poll.state == self._state else 1
        if self._is_news(poll):
            self._log_transition(poll)
        self._state = poll.state
        self._on_notices(poll.notices)
        return next_delay_s(poll.state, failures=self._failures, interval_s=self._interval_s)

    def _is_news(self, poll: Poll) -> bool:
        """Each trouble is told once until the source has been well for a while, and that is told once."""
        seen = (poll.state, bool(poll.detail) and poll.state == "answers")
        self._well = self._well + 1 if seen == _WELL else 0
        if seen in self._told or (seen == _WELL and self._told and self._well < STEADY_LOOKS):
            return False
        self._told = {_WELL} if seen == _WELL else {*self._told, seen} - {_WELL}
        return True

    def _log_transition(self, poll: Poll) -> None:
        match poll.state:
            case "answers" if poll.detail:
                _LOG.warning("the metadata service fails in part (%s): trying again", poll.detail)
            case "answers":
                _LOG.info("the metadata service answers: watching for interruption notices")
            case "absent":
                _LOG.debug("no EC2 metadata service here (%s): looking again now and then", poll.detail)
            case "disabled":
                _LOG.info("the metadata service refuses (%s): no interruption notices from it", poll.detail)
            case _:
                _LOG.warning("the metadata service fails (%s): trying again", poll.detail)
