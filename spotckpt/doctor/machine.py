"""What there is on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from spotckpt.agent import paths, room
from spotckpt.agent.options import AgentOptions, spool_quota, upload_limit
from spotckpt.agent.spool import held_bytes
from spotckpt.config import Settings, parse_seconds
from spotckpt.deadline import SYSTEM_CLOCK
from spotckpt.doctor.facts import Machine, Metadata
from spotckpt.notices.ec2 import Ec2Metadata, choose_endpoint
from spotckpt.notices.hops import hops_left

_COPIED_BYTES = 64 << 20
_CONTAINER_SIGNS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
_VENDORS = ("/sys/class/dmi/id/sys_vendor", "/sys/hypervisor/uuid")
_TORCHRUN_KILL_S = 30.0
"""torch.distributed.launcher's default of --shutdown-timeout."""


def look(uri: str, environ: Mapping[str, str] = os.environ) -> Machine:
    """Memory, directories, and what the environment says. Writes nothing.

    Args:
        uri: of the run, whose slots may lie there already: that is room for its next snapshots.
        environ: the environment.
    """
    spool, disk = paths.spool_dir(environ).absolute(), paths.disk_dir(environ).absolute()
    here, beside = held_bytes(uri, spool=spool, disk=disk)
    in_memory = room.is_memory(_existing(spool))
    return Machine(
        memory=room.memory_available() - AgentOptions.reserve_bytes + (here if in_memory else 0),
        spool=str(spool),
        spool_is_memory=in_memory,
        spool_room=_room_in(spool) + here,
        disk=str(disk),
        disk_room=_room_in(disk) + beside,
        quota=spool_quota(environ),
        shm=_shm_bytes(),
        copy_bytes_per_s=_copy_bytes_per_s(),
        in_container=_in_container(environ),
        on_ec2=any(_says_ec2(Path(vendor)) for vendor in _VENDORS),
        can_hibernate=_can_hibernate(Path("/proc/cmdline").read_text()),
        sigterm_grace_s=_sigterm_grace_s(environ),
        upload_limit=upload_limit(environ),
        torchrun_kill_s=_torchrun_kill_s(environ, _command_of(os.getppid())),
        world_size=int(environ["WORLD_SIZE"]) if environ.get("WORLD_SIZE", "").isdigit() else 1,
    )


def ask_metadata(explicit: str = "", environ: Mapping[str, str] = os.environ) -> Metadata:
    """Asks the metadata service for a token, for notices, and how far its answers get.

    Raises:
        SettingError: the explicit endpoint is not http://HOST[:PORT].
    """
    endpoint, _ = choose_endpoint(explicit, environ)
    if not endpoint:
        return Metadata("")
    with closing(Ec2Metadata(endpoint)) as service:
        found = service.poll()
        instance = service.text("/latest/meta-data/instance-id") if found.state == "answers" else ""
    now = SYSTEM_CLOCK.now()
    notices = tuple(notice.describe(now) for notice in found.notices if notice.is_final)
    hops = hops_left(endpoint) if found.state == "answers" else None
    return Metadata(endpoint, found.state, found.detail, hops, notices, instance)


def _existing(directory: Path) -> Path:
    """The directory, or the nearest one above it that is there."""
    return next(one for one in (directory.absolute(), *directory.absolute().parents) if one.is_dir())


def _room_in(directory: Path) -> int:
    """For new slots."""
    return max(0, room.free_bytes(_existing(directory), reserve_bytes=AgentOptions.reserve_bytes))


def _shm_bytes() -> int | None:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return None
    return found.f_blocks * found.f_frsize


def _copy_bytes_per_s() -> float:
    """Into memory that was touched before, as the slots of a training are."""
    source, target = bytes(_COPIED_BYTES), memoryview(bytearray(_COPIED_BYTES))
    target[:] = source
    began = time.perf_counter()
    target[:] = source
    return _COPIED_BYTES / (time.perf_counter() - began)


def _in_container(environ: Mapping[str, str]) -> bool:
    return "KUBERNETES_SERVICE_HOST" in environ or any(Path(sign).exists() for sign in _CONTAINER_SIGNS)


def _says_ec2(vendor: Path) -> bool:
    try:
        return vendor.read_text().lower().startswith(("amazon ec2", "ec2"))
    except OSError:
        return False


def _can_hibernate(kernel_command_line: str) -> bool:
    # what EC2's hibinit-agent sets up; without it the kernel would not find its memory again
    return any(word.startswith("resume=") for word in kernel_command_line.split())


def _sigterm_grace_s(environ: Mapping[str, str]) -> float:
    given = environ.get("SPOTCKPT_SIGTERM_GRACE")
    return parse_seconds(given, name="SPOTCKPT_SIGTERM_GRACE") if given else Settings.sigterm_grace_s


def _torchrun_kill_s(environ: Mapping[str, str], parent: Sequence[str]) -> float | None:
    """None if this is none of its workers; `parent` is the command line of what would then be torchrun."""
    if "TORCHELASTIC_RUN_ID" not in environ:
        return None
    options = dict(pairwise(word for words in parent for word in words.split("=", 1)))
    given = options.get("--shutdown-timeout") or options.get("--shutdown_timeout")
    given = given or environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    return parse_seconds(given, name="TORCH_ELASTIC_SHUTDOWN_TIMEOUT") if given else _TORCHRUN_KILL_S


def _command_of(pid: int) -> list[str]:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return []  # it has ended, or is not to be seen
