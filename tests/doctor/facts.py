"""Facts of a machine and a bucket on which everything fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spotckpt.doctor.facts import Bucket, Facts, Machine, Metadata, Permission, Speed, State
from spotckpt.doctor.judge import judge
from spotckpt.doctor.row import Row

GB = 10**9
NAMES = ("put", "conditional put", "get", "list", "multipart", "abort", "list uploads", "delete")

STATE = State(10 * GB, "--state-bytes")
BUCKET = Bucket(
    uri="s3://bucket/runs/resnet",
    permissions=tuple(Permission(name, True) for name in NAMES),
    round_trip_s=0.02,
    upload=Speed(500e6, GB // 2),
    download=Speed(500e6, GB // 2),
    clock_ahead_s=0.2,
    expiry_days=7.0,
    num_rules=1,
)
METADATA = Metadata("http://169.254.169.254", "answers", "", 2, (), "i-0123")
MACHINE = Machine(
    memory=100 * GB,
    spool="/dev/shm/spotckpt-1000",
    spool_is_memory=True,
    spool_room=64 * GB,
    disk="/var/tmp/spotckpt-1000",
    disk_room=200 * GB,
    shm=64 * GB,
    copy_bytes_per_s=5e9,
    on_ec2=True,
    sigterm_grace_s=30.0,
    torchrun_kill_s=30.0,
)


def rows(*, state: State = STATE, bucket: Any = None, metadata: Any = None, machine: Any = None) -> dict[str, Row]:
    """The verdicts on the facts above with those fields changed, by what was checked."""
    facts = Facts(
        state,
        replace(BUCKET, **(bucket or {})),
        replace(METADATA, **(metadata or {})),
        replace(MACHINE, **(machine or {})),
    )
    found = judge(facts)
    assert len({row.check for row in found}) == len(found)
    return {row.check: row for row in found}


def refused(name: str, *, allowed: bool | None = False, why: str = "answered 403", hint: str = "") -> dict[str, Any]:
    """The permissions, all of them but that one."""
    one = Permission(name, allowed, why, hint)
    return {"permissions": tuple(one if other.name == name else other for other in BUCKET.permissions)}
