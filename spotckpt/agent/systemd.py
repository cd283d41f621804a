"""What the service manager is told, in the words of sd_notify(3). Where there is none, nothing is said.

Source: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5) on `EXTEND_TIMEOUT_USEC`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Any

from spotckpt.deadline import Deadline

_SEND_S = 1.0
_MICRO = 1_000_000


class ServiceManager:
    """The one that started this process and waits for its word, if there is such a one.

    All of it is best effort: a message that is lost is followed by another, and an agent goes on without.

    Args:
        environ: with NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as systemd sets them.

    Attributes:
        listens: whether there is one.
        watchdog_s: how often it must hear that we are alive, in seconds; infinite if it does not ask for that.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.listens = bool(address)
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        asked = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(asked) / _MICRO if self.listens and mine and asked.isdigit() else float("inf")
        self._next_beat = Deadline(0.0)
        self._status = ""

    def tell(self, **fields: str | int) -> None:
        """Sends the fields in one message."""
        if not self.listens:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(_SEND_S)
            channel.sendto(message.encode(), self._address)

    def beat(self) -> None:
        """Says that whoever calls this is alive: at most so often as to be heard twice in the time that is given."""
        if self.watchdog_s < float("inf") and self._next_beat.passed:
            self.tell(WATCHDOG=1)
            self._next_beat = Deadline.after(self.watchdog_s / 2)

    @property
    def patience_s(self) -> float:
        """How long until the next `beat` is due, in seconds; infinite if none ever is."""
        return self._next_beat.seconds_left if self.watchdog_s < float("inf") else float("inf")

    def show(self, status: str) -> None:
        """The line that `systemctl status` shows; sent when it is another one than before."""
        if status != self._status:
            self._status = status
            self.tell(STATUS=status)

    def extend_stop(self, seconds: float) -> None:
        """Asks that the stop may take that much longer from now on."""
        self.tell(EXTEND_TIMEOUT_USEC=int(seconds * _MICRO))


def status_line(standing: Mapping[str, Any]) -> str:
    """One line for people, of what `spotckpt status` answers: notices first, then what is being uploaded."""
    notices = [notice_text(notice) for notice in standing["notices"]]
    runs = standing["runs"]
    count = "no run is open" if not runs else "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return "; ".join([*notices, count, *filter(None, map(_run, runs))])


def notice_text(notice: Mapping[str, Any]) -> str:
    """A notice, as `spotckpt status` answers it, for people."""
    left = notice["seconds_left"]
    return f"{notice['kind']} {notice['action']}" + ("" if left is None else f" in {left:.0f} s")


def _run(run: Mapping[str, Any]) -> str:
    upload, error = run["uploading"], run["error"]
    if upload is not None:
        gone = min(upload["gone_bytes"], upload["total_bytes"])
        share = 100 * gone // max(upload["total_bytes"], 1)
        return f"{run['uri']}: uploading {upload['id']}, {share} % of {upload['total_bytes'] / 1e6:.1f} MB"
    if error is not None:
        return f"{run['uri']}: {error['message']}"
    return f"{run['uri']}: {run['last_committed'] or 'nothing'} is committed"


def advance(standing: Mapping[str, Any]) -> object:
    """How far all uploads have come: another value whenever one of them came further."""
    return [(run["uri"], run["last_committed"], (run["uploading"] or {}).get("gone_bytes")) for run in standing["runs"]]
