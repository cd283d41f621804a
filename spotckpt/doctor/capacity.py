"""How long a snapshot takes, and how many have room: pure arithmetic on facts."""

from __future__ import annotations

from dataclasses import dataclass

from spotckpt.agent.options import AgentOptions
from spotckpt.agent.room import round_up
from spotckpt.doctor.facts import Facts, Machine

REQUESTS_PER_COMMIT = 4
"""One after the other: the part, a look for a later attempt, the manifest, and the look again."""


@dataclass(frozen=True)
class Saving:
    """What one snapshot takes, in seconds.

    Attributes:
        copy_s: from the boundary to the seal.
        total_s: from the boundary to the commit; None if the upload could not be measured.
    """

    copy_s: float
    total_s: float | None


def saving_of(facts: Facts) -> Saving | None:
    """On this machine and to that bucket; None if the size is not known."""
    size, speed = facts.state.size_bytes, upload_speed(facts)
    if size is None:
        return None
    copy_s = size / facts.machine.copy_bytes_per_s
    if speed is None:
        return Saving(copy_s, None)
    return Saving(copy_s, copy_s + size / speed + REQUESTS_PER_COMMIT * facts.bucket.round_trip_s)


def upload_speed(facts: Facts) -> float | None:
    """Bytes per second: what the line carries, and no more than the agent may send."""
    measured, limit = facts.bucket.upload.bytes_per_s, facts.machine.upload_limit
    return min(measured, limit) if measured and limit else measured


def slots(size_bytes: int, machine: Machine) -> tuple[int, int]:
    """How many snapshots of that size would be staged at a time: in the spool, and on disk where that is memory."""
    size = round_up(size_bytes)
    here = min(AgentOptions.slots, machine.spool_room // size)
    beside = min(AgentOptions.slots - here, machine.disk_room // size) if machine.spool_is_memory else 0
    most = here + beside
    if machine.quota:
        # a run's first slot takes what is left, a further one leaves room for one more
        most = min(most, int(machine.quota >= size) + max(0, machine.quota // size - 2))
    return min(here, most), max(0, most - here)
