"""Verdicts on time: what a snapshot takes, against what a notice, SIGTERM and torchrun give."""

from __future__ import annotations

import math

from spotckpt.agent.planner import SPOT_NOTICE_S
from spotckpt.config import Settings, size_text
from spotckpt.doctor.capacity import Saving, saving_of, upload_speed
from spotckpt.doctor.facts import Bucket, Facts, Speed
from spotckpt.doctor.row import Row, of_text, seconds_text

BUDGET_S = SPOT_NOTICE_S - Settings.reserve_s
TORCHRUN_USUALLY_S = 30.0
_MARGIN = 1.25
"""Of what is advised over what was measured."""
_END_S = 15.0
"""What a container engine should give beyond the grace."""


def time_rows(facts: Facts) -> list[Row]:
    """Rates, and what they mean for each of the ways in which a training is ended."""
    saving = saving_of(facts)
    return [
        _rate("upload", facts.bucket.upload, facts),
        _rate("download", facts.bucket.download, facts),
        _notice(facts, saving),
        _sigterm(facts, saving),
        _torchrun(facts, saving),
    ]


def _rate(name: str, speed: Speed, facts: Facts) -> Row:
    if speed.bytes_per_s is None:
        found = f"not measured: {speed.why or 'the store cannot be used'}"
        if not _could_be_measured(name, facts.bucket):
            return Row(name, found, "-")  # another row says what to do
        return Row(name, found, "does not fit", "look at the network between here and the store, and measure again")
    found = f"{size_text(speed.bytes_per_s)}/s, by {size_text(speed.measured_bytes)}"
    size = facts.state.size_bytes
    if name == "download" and size is not None:
        found += f": a restore reads {size_text(size)} in {seconds_text(size / speed.bytes_per_s)}"
    return Row(name, found, "-")


def _could_be_measured(name: str, bucket: Bucket) -> bool:
    if name == "upload":
        return bool(bucket.allows("put"))
    return bool(bucket.allows("get")) and bucket.upload.bytes_per_s is not None


def _notice(facts: Facts, saving: Saving | None) -> Row:
    if saving is None or saving.total_s is None:
        return _not_known("spot notice", facts)
    found = (
        f"{of_text(saving.total_s, BUDGET_S)}: a notice gives {SPOT_NOTICE_S:g} s, of which {Settings.reserve_s:g} s "
        f"are reserve"
    )
    if saving.total_s <= BUDGET_S:
        return Row("spot notice", found, "fits")
    return Row("spot notice", found, "does not fit", _faster(facts, saving.total_s))


def _faster(facts: Facts, total_s: float) -> str:
    size, speed = facts.state.size_bytes or 0, upload_speed(facts) or 1.0
    needed = size / max(1.0, BUDGET_S - (total_s - size / speed))
    minutes = math.ceil(total_s * _MARGIN / 60)
    limit = facts.machine.upload_limit
    line = (
        f"SPOTCKPT_AGENT_UPLOAD_LIMIT allows {size_text(limit)}/s: raise it"
        if limit and speed >= limit
        else "a bucket in the instance's region behind a gateway endpoint (aws ec2 create-vpc-endpoint --vpc-id VPC "
        "--service-name com.amazonaws.REGION.s3 --route-table-ids TABLE), or an instance type with more network"
    )
    age = math.ceil(minutes + total_s / 60)
    return (
        f"{size_text(needed)}/s would do: {line}; else the snapshot before the notice is what is left, with "
        f'every="{minutes}min" at most {age} min old'
    )


def _sigterm(facts: Facts, saving: Saving | None) -> Row:
    grace_s = facts.machine.sigterm_grace_s
    if saving is None or saving.total_s is None:
        return _not_known("SIGTERM", facts)
    found = f"{of_text(saving.total_s, grace_s)} (sigterm_grace)"
    if saving.total_s <= grace_s:
        return Row("SIGTERM", found, "fits")
    wanted = _rounded(saving.total_s)
    if facts.machine.in_container:
        remedy = (
            f"spotckpt exec --sigterm-grace {wanted}s -- CMD, and docker stop --time {wanted + _END_S:g} or "
            f"terminationGracePeriodSeconds: {wanted + _END_S:g}"
        )
        return Row("SIGTERM", f"{found}, after which a container is killed", "does not fit", remedy)
    if saving.copy_s > grace_s:
        return Row("SIGTERM", f"{found}; copying alone takes longer", "does not fit", f'sigterm_grace="{wanted}s"')
    found += "; the agent goes on uploading when the training has ended"
    return Row("SIGTERM", found, "advice", f'sigterm_grace="{wanted}s", if the machine may be switched off meanwhile')


def _torchrun(facts: Facts, saving: Saving | None) -> Row:
    machine = facts.machine
    if machine.world_size > 1:
        remedy = "torchrun --nproc-per-node 1: this version saves one rank"
        return Row("torchrun", f"WORLD_SIZE is {machine.world_size}", "does not fit", remedy)
    is_worker = machine.torchrun_kill_s is not None
    kill_s = TORCHRUN_USUALLY_S if machine.torchrun_kill_s is None else machine.torchrun_kill_s
    where = "" if is_worker else "not a worker of it; "
    if saving is None or saving.total_s is None:
        return Row("torchrun", f"{where}it kills {kill_s:g} s after SIGTERM", "-")
    found = f"{where}{of_text(saving.total_s, kill_s)}, when it kills after SIGTERM"
    if saving.total_s <= kill_s:
        return Row("torchrun", found, "fits" if is_worker else "-")
    wanted = _rounded(saving.total_s)
    remedy = f'torchrun --shutdown-timeout {wanted + _END_S:g} and sigterm_grace="{wanted}s"'
    return Row("torchrun", found, "does not fit" if is_worker else "advice", remedy)


def _rounded(seconds: float) -> int:
    """With a margin, to whole fives of seconds."""
    return 5 * math.ceil(seconds * _MARGIN / 5)


def _not_known(check: str, facts: Facts) -> Row:
    why = "the size of the state" if facts.state.size_bytes is None else "the upload rate"
    return Row(check, f"not known without {why}", "-")
