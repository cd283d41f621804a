"""Every row of the doctor's table fits on good facts, and says what to do on bad ones."""

from __future__ import annotations

import pytest

from spotckpt.doctor.facts import Speed, State
from spotckpt.doctor.judge import all_fit
from tests.doctor.facts import BUCKET, GB, refused, rows


def test_on_good_facts_everything_fits_and_nothing_is_advised():
    found = rows()
    assert {row.verdict for row in found.values()} == {"fits", "-"}
    assert [name for name, row in found.items() if row.verdict == "-"] == ["state", "upload", "download"]
    assert not any(row.remedy for row in found.values())
    assert found["spot notice"].found.startswith("22 s of 110 s")
    assert "reads 10.0 GB in 20 s" in found["download"].found


BROKEN = {
    "no state": (rows(state=State(None, "no run here yet")), "state", "-", "no run here", "--state-bytes 10GB"),
    "no bucket": (rows(bucket={"trouble": "no bucket", "hint": "create it"}), "store", "does not fit", "", "create it"),
    "put": (
        rows(bucket=refused("put")),
        "put", "does not fit", "403", "s3:PutObject on arn:aws:s3:::bucket/runs/resnet/*",
    ),
    "get": (
        rows(bucket=refused("get")),
        "get", "does not fit", "403", "s3:GetObject on arn:aws:s3:::bucket/runs/resnet/*",
    ),
    "list": (rows(bucket=refused("list")), "list", "does not fit", "403", "s3:ListBucket on arn:aws:s3:::bucket,"),
    "conditional": (
        rows(bucket=refused("conditional put", why="If-None-Match is ignored")),
        "conditional put", "does not fit", "ignored", "a store with conditional writes",
    ),
    "multipart": (
        rows(bucket=refused("multipart", allowed=None, why="500", hint="later")),
        "multipart", "does not fit", "500", "later",
    ),
    "abort": (
        rows(bucket=refused("abort") | {"expiry_days": None}),
        "abort", "advice", "lifecycle", "s3:AbortMultipartUpload",
    ),
    "abort with a rule": (rows(bucket=refused("abort")), "abort", "-", "lifecycle", "s3:AbortMultipartUpload"),
    "uploads": (rows(bucket=refused("list uploads")), "list uploads", "-", "killed", "s3:ListBucketMultipartUploads"),
    "delete": (rows(bucket=refused("delete")), "delete", "-", "pruning", "deploy/aws/prune-policy.json"),
    "clock off": (rows(bucket={"clock_ahead_s": 60.0}), "clock", "advice", "60 s behind", "timedatectl set-ntp true"),
    "clock wrong": (rows(bucket={"clock_ahead_s": -900.0}), "clock", "does not fit", "900 s ahead of", "chrony"),
    "no clock": (rows(bucket={"clock_ahead_s": None}), "clock", "-", "does not tell", ""),
    "no rule": (
        rows(bucket={"expiry_days": None, "num_rules": 0}),
        "lifecycle rule", "advice", "none", "aws s3api put-bucket-lifecycle-configuration --bucket bucket",
    ),
    "other rules": (
        rows(bucket={"expiry_days": None, "num_rules": 3}), "lifecycle rule", "advice", "none", "add to the 3 rules",
    ),
    "rules unseen": (
        rows(bucket={"expiry_days": None, "expiry_unknown": "403"}),
        "lifecycle rule", "-", "not known: 403", "s3:GetLifecycleConfiguration",
    ),
    "dead line": (rows(bucket={"upload": Speed(why="reset")}), "upload", "does not fit", "measured: reset", "network"),
    "dead line back": (rows(bucket={"download": Speed(why="cut")}), "download", "does not fit", "cut", "network"),
    "slow": (
        rows(bucket={"upload": Speed(50e6, GB)}), "spot notice", "does not fit", "202 s of 110 s", "92.7 MB/s would do",
    ),
    "limited": (
        rows(machine={"upload_limit": 50e6}),
        "spot notice", "does not fit", "202 s of 110 s", "SPOTCKPT_AGENT_UPLOAD_LIMIT",
    ),
    "grace": (
        rows(machine={"sigterm_grace_s": 10.0}), "SIGTERM", "advice", "22 s of 10 s", 'sigterm_grace="30s"',
    ),
    "grace in a container": (
        rows(machine={"sigterm_grace_s": 10.0, "in_container": True}),
        "SIGTERM", "does not fit", "22 s of 10 s", "terminationGracePeriodSeconds: 45",
    ),
    "grace too short to copy": (
        rows(machine={"sigterm_grace_s": 1.0}), "SIGTERM", "does not fit", "copying alone", 'sigterm_grace="30s"',
    ),
    "torchrun": (
        rows(machine={"torchrun_kill_s": 15.0}),
        "torchrun", "does not fit", "22 s of 15 s", "torchrun --shutdown-timeout 45",
    ),
    "not torchrun": (
        rows(machine={"torchrun_kill_s": None}, bucket={"upload": Speed(200e6, GB)}),
        "torchrun", "advice", "not a worker of it; 52 s of 30 s", "--shutdown-timeout 85",
    ),
    "ranks": (rows(machine={"world_size": 4}), "torchrun", "does not fit", "WORLD_SIZE is 4", "--nproc-per-node 1"),
    "hibernate": (
        rows(machine={"can_hibernate": True}),
        "hibernate", "advice", "no time", "InstanceInterruptionBehavior=terminate",
    ),
    "metadata lost": (
        rows(metadata={"state": "failing", "detail": "no answer in 2 s", "hops_left": None}),
        "metadata", "does not fit", "no answer", "--instance-id i-0123 --http-put-response-hop-limit 2",
    ),
    "metadata disabled": (
        rows(metadata={"state": "disabled", "detail": "disabled"}),
        "metadata", "does not fit", "", "--http-endpoint enabled",
    ),
    "metadata absent": (rows(metadata={"state": "absent"}), "metadata", "does not fit", "nothing answers", "enabled"),
    "metadata switched off": (
        rows(metadata={"endpoint": "", "state": None}),
        "metadata", "does not fit", "", "unset AWS_EC2_METADATA_DISABLED",
    ),
    "no EC2": (
        rows(metadata={"state": "absent"}, machine={"on_ec2": False}), "metadata", "-", "spotckpt notify only", "",
    ),
    "one hop": (rows(metadata={"hops_left": 1}), "hop limit", "advice", "no container", "hop-limit 2"),
    "one hop in a container": (
        rows(metadata={"hops_left": 1}, machine={"in_container": True}), "hop limit", "fits", "just reaches", "",
    ),
    "going": (
        rows(metadata={"notices": ("spot terminate in 60 s",)}),
        "notice in force", "does not fit", "in 60 s", "another machine",
    ),
    "no room": (
        rows(machine={"spool_room": GB, "disk_room": GB}), "spool", "does not fit", "no snapshot", "SPOTCKPT_SPOOL=",
    ),
    "room for one": (
        rows(machine={"spool_room": 11 * GB, "disk_room": GB}), "spool", "advice", "each waits", "SPOTCKPT_SPOOL=",
    ),
    "quota": (
        rows(machine={"spool_room": 64 * GB, "quota": 20 * GB}),
        "spool", "advice", "SPOTCKPT_SPOOL_QUOTA is 20.0 GB", "SPOTCKPT_SPOOL_QUOTA=38GiB",
    ),
    "shm": (
        rows(machine={"shm": 64 << 20, "spool_room": 64 << 20, "in_container": True}),
        "/dev/shm", "advice", "67.1 MB", "docker run --shm-size 28g",
    ),
    "shm of a machine": (
        rows(machine={"shm": GB}),
        "/dev/shm", "advice", "on disk", "mount -o remount,size=28G /dev/shm",
    ),
    "no shm": (rows(machine={"shm": None}), "/dev/shm", "-", "there is none", ""),
    "memory": (rows(machine={"memory": GB}), "memory", "advice", "1.0 GB may be taken", "more memory"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_its_row_with_what_to_do(case):
    found, check, verdict, words, remedy = BROKEN[case]
    row = found[check]
    assert row.verdict == verdict
    assert words in row.found
    assert remedy in row.remedy
    assert bool(row.remedy) == bool(remedy)
    assert all_fit(list(found.values())) == (verdict != "does not fit")


def test_in_a_directory_nothing_is_asked_that_only_s3_has():
    some = tuple(one for one in BUCKET.permissions if one.name in ("put", "conditional put", "get", "list", "delete"))
    found = rows(bucket={"uri": "file:///runs/a", "permissions": some, "expiry_days": None})
    assert "lifecycle rule" not in found
    assert {row.verdict for row in found.values()} == {"fits", "-"}
    denied = refused("put", hint="chmod u+w /runs")
    assert rows(bucket={"uri": "file:///runs/a", **denied})["put"].remedy == "chmod u+w /runs"


def test_without_a_rate_there_is_no_verdict_on_time():
    not_measured = Speed(why="put is not possible")
    found = rows(bucket={"upload": not_measured, "download": not_measured, **refused("put")})
    assert {found[check].verdict for check in ("upload", "download", "spot notice", "SIGTERM", "torchrun")} == {"-"}
    assert "upload rate" in found["spot notice"].found


def test_slots_go_where_there_is_room():
    spool = rows(machine={"spool_room": 25 * GB})["spool"]
    assert spool.verdict == "fits"
    assert "2 in /dev/shm/spotckpt-1000 and 1 on disk in /var/tmp/spotckpt-1000" in spool.found
    beside = rows(machine={"spool": "/data", "spool_is_memory": False, "spool_room": 15 * GB})
    assert beside["spool"].verdict == "advice"
    assert beside["/dev/shm"].verdict == "-"
