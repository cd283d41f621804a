"""How many snapshots have room: as many as the agent would lend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from spotckpt.agent.commons import Commons
from spotckpt.agent.options import AgentOptions
from spotckpt.doctor.capacity import slots
from tests.doctor.facts import MACHINE

MIB = 2**20


@dataclass(eq=False)
class Place:
    """What the agent's commons ask of a slot."""

    path: Path = Path("/spool/run/slot")
    allocated_bytes: int = 0


def lent(size: int, quota: int) -> int:
    """How many slots of that size an agent with that quota grants to a run that is alone."""
    granted: list[Any] = []
    commons = Commons(AgentOptions(spool_quota_bytes=quota), slots=lambda: granted, make_room=lambda: None)
    for _ in range(AgentOptions.slots):
        place: Any = Place()
        if commons.begin_growing(place, size, is_first=not granted) is not None:
            break
        commons.end_growing(place)
        place.allocated_bytes = size
        granted.append(place)
    return len(granted)


@pytest.mark.parametrize("quota", [0, 99, 100, 199, 200, 299, 300, 399, 400, 1000])
def test_a_quota_allows_what_the_agent_allows(quota):
    assert sum(slots(100 * MIB, replace(MACHINE, quota=quota * MIB))) == lent(100 * MIB, quota * MIB)


@pytest.mark.parametrize(
    ("spool", "disk", "expected"), [(350, 0, (3, 0)), (250, 900, (2, 1)), (99, 150, (0, 1)), (99, 99, (0, 0))]
)
def test_what_the_spool_has_no_room_for_goes_to_disk(spool, disk, expected):
    machine = replace(MACHINE, spool_room=spool * MIB, disk_room=disk * MIB)
    assert slots(100 * MIB, machine) == expected
