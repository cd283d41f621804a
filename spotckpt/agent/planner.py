"""What to do about a notice. Pure: numbers in, a decision with its reason out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spotckpt.notices.notice import Notice

SPOT_NOTICE_S = 120.0
"""What EC2 gives at best (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html)."""

RESERVE_S = 5.0
"""Time kept for the commit, the last heartbeat and clocks that disagree."""

Plan = Literal["continue", "snapshot", "stop"]


@dataclass(frozen=True)
class Situation:
    """What is known about one run.

    Attributes:
        notice: the most urgent one in force.
        now: boot-time clock, seconds.
        pending_bytes: still to be uploaded of what is sealed or under way.
        snapshot_bytes: size of one snapshot, None before the first.
        bandwidth: bytes per second as measured, None before the first upload.
        answered: whether the trainer has taken its snapshot for this notice already.
        reserve_s: see RESERVE_S.
    """

    notice: Notice | None
    now: float
    pending_bytes: int = 0
    snapshot_bytes: int | None = None
    bandwidth: float | None = None
    answered: bool = False
    reserve_s: float = RESERVE_S


def fits(size_bytes: int, *, seconds_left: float, bandwidth: float) -> bool:
    """Whether that much can be sent before the deadline, even at half the bandwidth, in bytes per second."""
    return 2 * size_bytes / bandwidth + RESERVE_S <= seconds_left


def overrun(size_bytes: int, bandwidth: float) -> str:
    """What to warn of when uploads of that size, in bytes, outlast a notice at that bandwidth; empty if they do not."""
    seconds = size_bytes / bandwidth
    if seconds + RESERVE_S <= SPOT_NOTICE_S:
        return ""
    return (
        f"uploading a snapshot takes {seconds:.0f} s ({size_bytes / 1e6:.1f} MB at {bandwidth / 1e6:.1f} MB/s), and a "
        f"spot notice comes {SPOT_NOTICE_S:.0f} s before the end: the snapshot committed before it will be what is left"
    )


@dataclass(frozen=True)
class Decision:
    """What the agent and the trainer shall do.

    Attributes:
        upload_now: the newest sealed snapshot goes at once, whatever back-off was being waited for.
        plan: for the trainer: go on, stage one snapshot as soon as possible (after a final notice: and stop then), or
            stop without another one.
        why: one line, in numbers.
    """

    upload_now: bool
    plan: Plan
    why: str


def decide(situation: Situation) -> Decision:
    """The decision. Bounds: never counts on more time than the notice gives, less the reserve."""
    notice = situation.notice
    if notice is None:
        return Decision(False, "continue", "no notice")
    upload_now = situation.pending_bytes > 0
    if not notice.is_final:
        if situation.answered:
            return Decision(upload_now, "continue", "rebalance recommendation: its snapshot is taken, training goes on")
        return Decision(upload_now, "snapshot", "rebalance recommendation: one early snapshot, training goes on")
    if situation.answered:
        return Decision(upload_now, "stop", f"{notice.describe(situation.now)}: the last snapshot is taken")
    plan, why = _last_snapshot(situation, notice)
    return Decision(upload_now, plan, f"{notice.describe(situation.now)}: {why}")


def _last_snapshot(situation: Situation, notice: Notice) -> tuple[Plan, str]:
    left = notice.seconds_left(situation.now)
    if left is None:
        return "snapshot", "nobody says when, so one snapshot now"
    usable = left - situation.reserve_s
    if situation.bandwidth is None or situation.snapshot_bytes is None:
        if usable <= 0:
            return "stop", f"{usable:.0f} s are left beyond the reserve of {situation.reserve_s:g} s"
        return "snapshot", f"{usable:.0f} s beyond the reserve, bandwidth not known yet: one snapshot now"
    needed = (situation.pending_bytes + situation.snapshot_bytes) / situation.bandwidth
    numbers = (
        f"{(situation.pending_bytes + situation.snapshot_bytes) / 1e6:.1f} MB at {situation.bandwidth / 1e6:.1f} MB/s "
        f"take {needed:.1f} s of {usable:.1f} s"
    )
    return ("snapshot", f"{numbers}: one more snapshot") if usable >= needed else ("stop", f"{numbers}: no more")
