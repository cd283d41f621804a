"""What to do about a notice. Pure: numbers in, a decision with its reason out.

After a final notice whose time is known, training goes on as long as that is safe:

1. A snapshot of the next boundary goes first. If no boundary is in sight (a long evaluation), what is sealed goes
   meanwhile, and gives way as soon as there is something newer that fits.
2. Once one of after the notice is committed, another follows now and then, so that a line that fails costs little.
3. The last one is taken at the last boundary from which it is there by the deadline less the reserve.

Nothing that began before the first commit is given up for something that began with the notice, so no line, however it
fails, loses a snapshot that saving at once would have committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spotckpt.config import Settings
from spotckpt.notices.notice import Notice

SPOT_NOTICE_S = 120.0
"""What EC2 gives at best (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html)."""

MARGIN = 0.25
"""Of the time that an upload takes, what is kept at least: seconds say little of one that takes minutes."""

SPACING_S = 10.0
"""Between two snapshots that only insure the last one, at least."""

HOPE = 1.5
"""Nothing is given up for lost that a line so much faster would still carry."""

Plan = Literal["continue", "snapshot", "last", "stop"]
"""For the trainer: go on; take a snapshot at the next boundary and go on; take it and stop; stop without one."""

Sending = Literal["go", "hold", "abandon"]
"""For the agent: what is sealed goes when the line is free; waits for a newer one; takes the place of the upload."""


@dataclass(frozen=True)
class Flight:
    """The upload under way.

    Attributes:
        left_bytes: still to be sent.
        is_ours: it began after the notice, so it may be given up for a newer one.
    """

    left_bytes: int
    is_ours: bool


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is known about one run. Fresh is what was staged after the notice.

    Attributes:
        notice: the most urgent one in force.
        now: boot-time clock, seconds.
        seen_s: since the notice was first seen.
        reserve_s: see `Settings`.
        snapshot_bytes: what one snapshot sends, None before the first.
        bandwidth: bytes per second as measured, None before the first upload.
        copy_s: from a boundary to the seal.
        commit_s: what an upload takes beside its bytes.
        flight: the upload under way.
        sealed_bytes: what the newest sealed snapshot will send; 0 without one.
        sealed_is_fresh: it was staged after the notice.
        boundary_s: seconds until the next boundary; None if none is in sight.
        step_s: usual seconds between two.
        asked_s: seconds since the trainer was last asked for a snapshot for this notice; None if it was not.
        is_awaited: that one is not sealed yet.
        has_saved: a fresh one is committed.
    """

    notice: Notice | None
    now: float
    seen_s: float = 0.0
    reserve_s: float = Settings.reserve_s
    snapshot_bytes: int | None = None
    bandwidth: float | None = None
    copy_s: float = 0.0
    commit_s: float = 0.0
    flight: Flight | None = None
    sealed_bytes: int = 0
    sealed_is_fresh: bool = False
    boundary_s: float | None = None
    step_s: float = 0.0
    asked_s: float | None = None
    is_awaited: bool = False
    has_saved: bool = False

    def upload_s(self, size_bytes: int | None = None, *, hope: float = 1.0) -> float:
        """How long that much, or a snapshot, takes from its seal to its commit, on a line `hope` times as fast."""
        size = self.snapshot_bytes if size_bytes is None else size_bytes
        return self.commit_s + ((size or 0) / (self.bandwidth * hope) if self.bandwidth else 0.0)

    def line_s(self, *, hope: float = 1.0) -> float:
        """Until everything fresh that is under way or sealed would be committed, and the line free."""
        flight = self.upload_s(self.flight.left_bytes, hope=hope) if self.flight else 0.0
        return flight + (self.upload_s(self.sealed_bytes, hope=hope) if self.sealed_is_fresh else 0.0)


@dataclass(frozen=True)
class Decision:
    """What the agent and the trainer shall do.

    Attributes:
        plan: for the trainer.
        sending: for the agent.
        why: one line, in numbers.
    """

    plan: Plan
    sending: Sending
    why: str


def fits(size_bytes: int, *, seconds_left: float, bandwidth: float, reserve_s: float) -> bool:
    """Whether that much can be sent before the deadline, even at half the bandwidth, in bytes per second."""
    return 2 * size_bytes / bandwidth + reserve_s <= seconds_left


def overrun(size_bytes: int, bandwidth: float, *, reserve_s: float) -> str:
    """What to warn of when uploads of that size, in bytes, outlast a notice at that bandwidth; empty if they do not."""
    seconds = size_bytes / bandwidth
    if seconds + reserve_s <= SPOT_NOTICE_S:
        return ""
    return (
        f"uploading a snapshot takes {seconds:.0f} s ({size_bytes / 1e6:.1f} MB at {bandwidth / 1e6:.1f} MB/s), and a "
        f"spot notice comes {SPOT_NOTICE_S:.0f} s before the end: the snapshot committed before it will be what is left"
    )


def decide(situation: Situation) -> Decision:
    """The decision. Never counts on more time than the notice gives."""
    notice = situation.notice
    if notice is None:
        return Decision("continue", "go", "no notice")
    if not notice.is_final:
        return _hint(situation)
    about = notice.describe(situation.now)
    left = notice.seconds_left(situation.now)
    if notice.kind == "signal" or (left is None and notice.kind != "spot"):
        return Decision("last", "go", f"{about}: whoever said so waits, so one snapshot now")
    left, plans = (SPOT_NOTICE_S - situation.seen_s, _any_moment) if left is None else (left, _as_late_as_is_safe)
    if left <= 0:
        return Decision("stop", "go", f"{about}: no time is left for another snapshot")
    plan, why = plans(situation, left) if situation.has_saved else _first(situation, left)
    sending, reason = _sending(situation, left)
    return Decision(plan, sending, f"{about}: {why}{reason} ({_numbers(situation)})")


def _hint(situation: Situation) -> Decision:
    if situation.asked_s is None:
        return Decision("snapshot", "go", "rebalance recommendation: one early snapshot, training goes on")
    return Decision("continue", "go", "rebalance recommendation: its snapshot is taken, training goes on")


def _first(now: Situation, left: float) -> tuple[Plan, str]:
    """Until one snapshot is committed."""
    if now.asked_s is None:
        if _fits_again(now, left, until_free=now.line_s(hope=HOPE) + _cycle_s(now)):
            return "snapshot", "one snapshot at the next boundary, then training goes on"
        return "last", "one snapshot at the next boundary, and no time for another"
    until_free = now.line_s(hope=HOPE) + (_cycle_s(now) if now.is_awaited else 0.0)
    if now.bandwidth is None or _fits_again(now, left, until_free=until_free):
        return "continue", "training goes on while a snapshot is on its way"
    if now.is_awaited:
        return "last", "the snapshot of the next boundary is the last one"
    return "stop", "no time for another snapshot"


def _cycle_s(now: Situation) -> float:
    """From asking for a snapshot to its commit, if all goes well."""
    return (now.boundary_s or 0.0) + now.copy_s + now.upload_s(hope=HOPE)


def _fits_again(now: Situation, left: float, *, until_free: float) -> bool:
    return until_free + now.upload_s(hope=HOPE) <= left


def _as_late_as_is_safe(now: Situation, left: float) -> tuple[Plan, str]:
    upload_s, soon = now.upload_s(), now.boundary_s or 0.0
    spare = left - max(now.reserve_s, MARGIN * upload_s) - upload_s - now.copy_s
    following = soon + now.step_s if now.boundary_s is not None else 0.0
    if following >= spare:
        if soon + now.copy_s + now.upload_s(hope=HOPE) <= left:
            return "last", "the next boundary is the last one from which a snapshot can be committed"
        return "stop", "no time for another snapshot"
    if _may_insure(now) and soon + now.copy_s + upload_s <= spare:
        return "snapshot", f"the last snapshot can wait {spare:.0f} s, one more meanwhile"
    return "continue", f"the last snapshot can wait {spare:.0f} s"


def _any_moment(now: Situation, left: float) -> tuple[Plan, str]:
    """EC2 never gives more than `SPOT_NOTICE_S`, and may give nothing."""
    if _may_insure(now):
        return "snapshot", "one more snapshot, as any may be the last"
    return "continue", f"training goes on for at most {left:.0f} s"


def _may_insure(now: Situation) -> bool:
    idle = now.flight is None and not now.sealed_bytes and not now.is_awaited
    return idle and (now.asked_s is None or now.asked_s >= SPACING_S)


def _sending(now: Situation, left: float) -> tuple[Sending, str]:
    """What becomes of the line."""
    if now.flight is None:
        return _first_over_the_line(now, left)
    if not now.sealed_is_fresh or not now.flight.is_ours:
        return "go", ""
    alone = now.upload_s(now.sealed_bytes)
    if alone > left:
        return "go", ""
    if not now.has_saved:
        return "abandon", "; the upload under way is given up for a newer snapshot"
    if now.upload_s(now.flight.left_bytes) + alone > left:
        return "abandon", "; the upload under way is given up for a newer snapshot, as both do not fit"
    return "go", ""


def _first_over_the_line(now: Situation, left: float) -> tuple[Sending, str]:
    """Whether what was sealed before the notice waits for the boundary that comes."""
    if not now.sealed_bytes or now.sealed_is_fresh or now.has_saved or now.boundary_s is None:
        return "go", ""
    wait_s = now.boundary_s + now.copy_s
    if now.upload_s(now.sealed_bytes) <= wait_s or wait_s + now.upload_s() > left:
        return "go", ""  # it is there before the boundary comes; or nothing newer fits
    return "hold", f"; what is sealed waits for the boundary in {now.boundary_s:.1f} s"


def _numbers(now: Situation) -> str:
    size = "size unknown" if now.snapshot_bytes is None else f"{now.snapshot_bytes / 1e6:.1f} MB"
    speed = "at a bandwidth that is not known" if now.bandwidth is None else f"at {now.bandwidth / 1e6:.1f} MB/s"
    boundary = "none in sight" if now.boundary_s is None else f"in {now.boundary_s:.1f} s"
    under_way = f", {now.flight.left_bytes / 1e6:.1f} MB under way" if now.flight else ""
    return (
        f"{size} {speed} take {now.upload_s():.1f} s and {now.copy_s:.1f} s to copy{under_way}; "
        f"next boundary {boundary}; reserve {now.reserve_s:g} s"
    )
