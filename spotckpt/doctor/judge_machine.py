"""Verdicts on the machine: will it be heard that it goes, and is there room to stage."""

from __future__ import annotations

from spotckpt.agent.options import AgentOptions
from spotckpt.config import size_text
from spotckpt.doctor.capacity import slots
from spotckpt.doctor.facts import Facts, Machine, Metadata
from spotckpt.doctor.row import Row

_SHM = "/dev/shm"
_GIB = 2**30


def machine_rows(facts: Facts) -> list[Row]:
    """Notices first, then memory and directories."""
    machine, metadata = facts.machine, facts.metadata
    rows = [_hibernate(machine), _reachable(metadata, machine), _hop_limit(metadata, machine)]
    if metadata.notices:
        rows.append(Row("notice in force", "; ".join(metadata.notices), "does not fit", "start on another machine"))
    return rows + _staging(facts.state.size_bytes, machine)


def _hibernate(machine: Machine) -> Row:
    if not machine.can_hibernate:
        return Row("hibernate", "not set up: no resume= on the kernel's command line", "fits")
    return Row(
        "hibernate",
        "set up: such a notice gives no time, and memory sleeps with the machine",
        "advice",
        "InstanceInterruptionBehavior=terminate in the launch template's SpotOptions; else another machine finds what "
        "was committed before",
    )


def _reachable(metadata: Metadata, machine: Machine) -> Row:
    if metadata.state == "answers":
        return Row("metadata", f"{metadata.endpoint} answers (IMDSv2)", "fits")
    if metadata.state is None:
        found, remedy = "not asked: AWS_EC2_METADATA_DISABLED is true", "unset AWS_EC2_METADATA_DISABLED"
    elif metadata.state == "absent":
        found, remedy = f"nothing answers at {metadata.endpoint}", _modify(metadata, "--http-endpoint enabled")
    elif metadata.state == "disabled":
        found, remedy = metadata.detail, _modify(metadata, "--http-endpoint enabled")
    else:
        found, remedy = metadata.detail, _modify(metadata, "--http-put-response-hop-limit 2")
    if metadata.state == "failing" or machine.on_ec2:
        return Row("metadata", found, "does not fit", remedy)
    return Row("metadata", f"{found}; this is not EC2: notices come by SIGTERM and spotckpt notify only", "-")


def _hop_limit(metadata: Metadata, machine: Machine) -> Row:
    where = "this container" if machine.in_container else "this machine"
    if metadata.hops_left is None:
        return Row("hop limit", "not known: no token came", "-")
    if metadata.hops_left > 1:
        return Row("hop limit", f"the token reaches {where}, and one hop further", "fits")
    if machine.in_container:
        return Row("hop limit", f"the token just reaches {where}", "fits")
    remedy = _modify(metadata, "--http-put-response-hop-limit 2")
    return Row("hop limit", f"the token reaches {where} only, no container on it", "advice", remedy)


def _modify(metadata: Metadata, option: str) -> str:
    return f"aws ec2 modify-instance-metadata-options --instance-id {metadata.instance or 'INSTANCE'} {option}"


def _staging(size: int | None, machine: Machine) -> list[Row]:
    if size is None:
        return [
            Row("spool", f"{size_text(machine.spool_room)} in {machine.spool}", "-"),
            Row(_SHM, "there is none" if machine.shm is None else size_text(machine.shm), "-"),
            Row("memory", f"{size_text(max(0, machine.memory))} may be taken", "-"),
        ]
    return [_spool(size, machine), _shm(size, machine), _memory(size, machine)]


def _spool(size: int, machine: Machine) -> Row:
    here, beside = slots(size, machine)
    places = [f"{here} in {machine.spool}"] if here else []
    places += [f"{beside} on disk in {machine.disk}"] if beside else []
    found = f"room for {' and '.join(places) or 'no snapshot'}, of {AgentOptions.slots}"
    if machine.quota:
        found += f" (SPOTCKPT_SPOOL_QUOTA is {size_text(machine.quota)})"
    if here + beside > 1:
        return Row("spool", found, "fits")
    if here + beside:
        return Row("spool", f"{found}: each waits for the upload before", "advice", _more_room(2 * size, machine))
    return Row("spool", found, "does not fit", _more_room(size, machine))


def _more_room(wanted: int, machine: Machine) -> str:
    if machine.quota and machine.quota < wanted * 2:
        return f"SPOTCKPT_SPOOL_QUOTA={_gib(2 * wanted)}GiB"
    room = max(machine.spool_room, machine.disk_room)
    return f"SPOTCKPT_SPOOL=DIRECTORY, on a disk with {size_text(wanted)} free ({size_text(room)} are free here)"


def _shm(size: int, machine: Machine) -> Row:
    if machine.shm is None:
        return Row(_SHM, "there is none: snapshots are staged on disk", "-")
    found = size_text(machine.shm)
    if not machine.spool.startswith(f"{_SHM}/"):
        return Row(_SHM, f"{found}, not used: snapshots are staged in {machine.spool}", "-")
    if machine.shm >= size:
        return Row(_SHM, f"{found} for snapshots of {size_text(size)}", "fits")
    wanted = _gib(AgentOptions.slots * size)
    remedy = f"docker run --shm-size {wanted}g" if machine.in_container else f"mount -o remount,size={wanted}G {_SHM}"
    return Row(_SHM, f"{found} for snapshots of {size_text(size)}: they are staged on disk", "advice", remedy)


def _memory(size: int, machine: Machine) -> Row:
    found = f"{size_text(max(0, machine.memory))} may be taken, a snapshot is {size_text(size)}"
    if machine.memory >= size:
        return Row("memory", found, "fits")
    remedy = "an instance type with more memory" + (", or docker run --memory" if machine.in_container else "")
    return Row("memory", f"{found}: they are staged on disk", "advice", f"{remedy}, if writing to disk is too slow")


def _gib(num_bytes: int) -> int:
    return -(-num_bytes // _GIB)
