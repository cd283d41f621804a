"""All notices that this agent knows, from wherever they come, and which of them are in force."""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from spotckpt.agent.files import write_durably
from spotckpt.agent.processes import boot_id
from spotckpt.deadline import SYSTEM_CLOCK, Clock
from spotckpt.errors import UsageError
from spotckpt.notices.notice import Action, Kind, Notice, most_urgent

_LOG = logging.getLogger(__name__)

_ACTIONS: dict[str, Action] = {
    "terminate": "terminate",
    "stop": "stop",
    "hibernate": "hibernate",
    "rebalance": "rebalance",
}
_KINDS: dict[str, Kind] = {
    "spot": "spot",
    "rebalance": "rebalance",
    "maintenance": "maintenance",
    "lifecycle": "lifecycle",
    "signal": "signal",
    "manual": "manual",
}
_LONGEST_S = 30 * 86400.0


class Board:
    """Thread-safe. A notice is announced once, by its id, however often a source shows it.

    Args:
        path: where injected notices are kept, so that they outlive the agent; they do not outlive the boot.
        on_new: called, outside the lock, with each notice in force that was not announced before.
        clock: for deadlines.
    """

    def __init__(self, path: Path, on_new: Callable[[Notice], None], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = path
        self._on_new = on_new
        self._clock = clock
        self._lock = threading.Lock()
        self._shown: dict[str, tuple[Notice, ...]] = {}
        self._first_seen: dict[str, float] = {}
        self._announced: set[str] = set()

    def see(self, source: str, notices: Sequence[Notice]) -> None:
        """Takes what a source shows now for all that it shows, and announces what is new."""
        now = self._clock.now()
        with self._lock:
            gone = {notice.id for notice in self._shown.get(source, ())} - {notice.id for notice in notices}
            self._shown[source] = tuple(notices)
            for notice in notices:
                self._first_seen.setdefault(notice.id, now)
            new = [notice for notice in notices if notice.id not in self._announced and self._is_in_force(notice, now)]
        for name in sorted(gone):
            _LOG.info("notice %s is no longer shown", name)
        for notice in new:
            _LOG.warning("notice: %s (%s)", notice.describe(now), notice.id)
            self._on_new(notice)
            # only now: if telling fails, the next sight of it tells again
            with self._lock:
                self._announced.add(notice.id)

    def inject(self, action: str, *, in_s: float | None, kind: str = "manual") -> Notice:
        """Adds a notice by hand.

        Raises:
            UsageError: there is no such action or kind, or the time is out of range.
        """
        if action not in _ACTIONS or kind not in _KINDS:
            raise UsageError(
                f"notice {kind!r} {action!r} is not known",
                hint=f"actions are {', '.join(_ACTIONS)}; kinds are {', '.join(_KINDS)}",
            )
        if in_s is not None and not 0 <= in_s <= _LONGEST_S:
            raise UsageError(f"a notice in {in_s!r} s is out of range", hint="give 0 s to 30 days")
        now = self._clock.now()
        notice = Notice(
            _KINDS[kind], _ACTIONS[action], None if in_s is None else now + in_s, f"manual:{secrets.token_hex(4)}"
        )
        with self._lock:
            notices = (*self._shown.get("manual", ()), notice)
            self._first_seen[notice.id] = now
        self._save(notices)
        self.see("manual", notices)
        return notice

    def clear(self) -> None:
        """Forgets what was injected; what a source shows stays."""
        self._save(())
        self.see("manual", ())

    def in_force(self) -> list[Notice]:
        """Every notice that counts now."""
        now = self._clock.now()
        with self._lock:
            return [notice for shown in self._shown.values() for notice in shown if self._is_in_force(notice, now)]

    def final(self) -> Notice | None:
        """The most urgent final notice in force."""
        return most_urgent(notice for notice in self.in_force() if notice.is_final)

    def most_urgent(self) -> Notice | None:
        """The most urgent notice in force, final or not."""
        return most_urgent(self.in_force())

    def _is_in_force(self, notice: Notice, now: float) -> bool:
        return notice.in_force(now, first_seen=self._first_seen[notice.id])

    def _save(self, notices: Sequence[Notice]) -> None:
        fields = [{**asdict(notice), "first_seen": self._first_seen[notice.id]} for notice in notices]
        try:
            write_durably(self._path, json.dumps({"boot_id": boot_id(), "notices": fields}).encode())
        except OSError as error:  # it counts all the same
            _LOG.warning("%s cannot be written (%s): the next agent will not know of this", self._path, error)

    def load(self) -> None:
        """Takes up what an earlier agent was told by hand on this boot."""
        try:
            kept = json.loads(self._path.read_bytes())
            if kept["boot_id"] != boot_id():
                return
            for fields in kept["notices"]:
                self._first_seen[fields["id"]] = float(fields.pop("first_seen"))
            self.see("manual", [Notice(**fields) for fields in kept["notices"]])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s cannot be read (%s): injected notices are forgotten", self._path, error)
