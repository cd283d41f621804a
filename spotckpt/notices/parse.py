"""Reads what the EC2 instance metadata service says about interruptions. Pure functions.

Formats: Amazon EC2 User Guide, "Spot Instance interruption notices", "EC2 instance rebalance recommendations",
"View scheduled events for your instances", and the Auto Scaling guide's "Retrieve the target lifecycle state".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from spotckpt.notices.notice import Action, Notice

SCHEDULED_HORIZON_S = 600.0
"""A scheduled event further away than this is no reason to stop yet."""

_ACTIONS: dict[str, Action] = {"terminate": "terminate", "stop": "stop", "hibernate": "hibernate"}
# system-maintenance (network or power) leaves the instance running
_EVENT_CODES: dict[str, Action] = {
    "instance-stop": "stop",
    "instance-retirement": "terminate",
    "instance-reboot": "stop",
    "system-reboot": "stop",
}


class Unreadable(ValueError):
    """The reply is not what this path of the metadata service is documented to give."""


@dataclass(frozen=True)
class Reply:
    """An answer of the metadata service.

    Attributes:
        body: as text.
        date: its `Date` header, or empty.
        sent_at: boot-time clock when the request went out: what it says was true no earlier.
        wall: this machine's own clock then, for want of a `Date`.
    """

    body: str
    date: str
    sent_at: float
    wall: float

    def boot_time(self, when: datetime) -> float:
        """That moment on the boot-time clock, by the service's own clock.

        `Date` has whole seconds, so the result may be up to a second late; over several replies the least is right.
        """
        server = _parse_http_date(self.date) or datetime.fromtimestamp(self.wall, timezone.utc)
        return self.sent_at + (when - server).total_seconds()


def parse_instance_action(reply: Reply) -> list[Notice]:
    """`spot/instance-action`: `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`."""
    fields = _json(reply.body)
    if not isinstance(fields, dict):
        raise Unreadable(f"spot/instance-action is {reply.body[:80]!r}")
    # an action that is not known yet is taken for the worst one
    action = _ACTIONS.get(str(fields.get("action")), "terminate")
    when = parse_iso_time(fields.get("time"))
    deadline = None if when is None else reply.boot_time(when)
    return [Notice("spot", action, deadline, f"spot:{action}:{fields.get('time')}", reply.body)]


def parse_rebalance(reply: Reply) -> list[Notice]:
    """`events/recommendations/rebalance`: `{"noticeTime": "2020-10-27T08:22:00Z"}`."""
    fields = _json(reply.body)
    if not isinstance(fields, dict):
        raise Unreadable(f"events/recommendations/rebalance is {reply.body[:80]!r}")
    return [Notice("rebalance", "rebalance", None, f"rebalance:{fields.get('noticeTime')}", reply.body)]


def parse_scheduled_events(reply: Reply) -> list[Notice]:
    """`events/maintenance/scheduled`: a list; those that end the instance within the horizon."""
    events = _json(reply.body)
    if not isinstance(events, list):
        raise Unreadable(f"events/maintenance/scheduled is {reply.body[:80]!r}")
    found = [_scheduled_event(event, reply) for event in events if isinstance(event, dict)]
    return [notice for notice in found if notice is not None]


def _scheduled_event(event: dict[str, Any], reply: Reply) -> Notice | None:
    action = _EVENT_CODES.get(str(event.get("Code")))
    if action is None or event.get("State", "active") != "active":
        return None
    when = _parse_http_date(str(event.get("NotBefore")))
    deadline = None if when is None else reply.boot_time(when)
    if deadline is not None and deadline > reply.sent_at + SCHEDULED_HORIZON_S:
        return None
    name = event.get("EventId") or f"{event.get('Code')}:{event.get('NotBefore')}"
    return Notice("maintenance", action, deadline, f"maintenance:{name}", json.dumps(event))


def parse_lifecycle_state(reply: Reply) -> list[Notice]:
    """`autoscaling/target-lifecycle-state`: the word `Terminated` means leave; nobody says when."""
    if reply.body.strip() not in ("Terminated", "Warmed:Terminated"):
        return []
    return [Notice("lifecycle", "terminate", None, f"lifecycle:{reply.body.strip()}", reply.body)]


def parse_iso_time(text: object) -> datetime | None:
    """`2017-09-18T08:22:00Z`, also with a fraction or an offset; None if it is no time."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return _if_usable(found if found.tzinfo else found.replace(tzinfo=timezone.utc))


def _parse_http_date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return _if_usable(found if found.tzinfo else found.replace(tzinfo=timezone.utc))


def _if_usable(when: datetime) -> datetime | None:
    """Years in which arithmetic with time zones cannot overflow."""
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    try:
        return when if abs(when - epoch) < timedelta(days=365 * 1000) else None
    except OverflowError:
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"metadata is not JSON: {text[:80]!r}") from error
