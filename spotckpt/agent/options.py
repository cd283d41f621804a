"""The settings of one agent, and its exit statuses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spotckpt.agent import paths
from spotckpt.agent.log import LOG_FORMATS, LogFormat
from spotckpt.config import parse_bytes, parse_speed
from spotckpt.errors import SettingError

ALREADY_RUNNING = 45
"""Exit status of an agent that found another one holding the runtime directory or the spool."""


def upload_limit(environ: Mapping[str, str] = os.environ) -> float:
    """SPOTCKPT_AGENT_UPLOAD_LIMIT as bytes per second; 0 without it."""
    name = "SPOTCKPT_AGENT_UPLOAD_LIMIT"
    return parse_speed(environ[name], name=name) if environ.get(name) else 0.0


def spool_quota(environ: Mapping[str, str] = os.environ) -> int:
    """SPOTCKPT_SPOOL_QUOTA in bytes; 0 without it."""
    name = "SPOTCKPT_SPOOL_QUOTA"
    return parse_bytes(environ[name], name=name) if environ.get(name) else 0


def limits(upload: str, quota: str) -> dict[str, Any]:
    """The options `--upload-limit` and `--spool-quota`, where they are given, by the names that they have below."""
    given: dict[str, Any] = {}
    if upload:
        given["upload_limit"] = parse_speed(upload, name="--upload-limit")
    if quota:
        given["spool_quota_bytes"] = parse_bytes(quota, name="--spool-quota")
    return given


@dataclass(frozen=True)
class AgentOptions:
    """What an agent may be told; durations are in seconds.

    Attributes:
        private: started by a trainer; ends after `idle_exit_s` without an open run, a client or anything to upload.
        detach: go on in the background, in a session of its own, once the socket listens.
        runtime_dir: where the socket, the runtime lock and a private agent's log are.
        spool_dir: where snapshots are staged; its lock decides which agent may free and upload them.
        disk_dir: where slots go for which memory has no room.
        metadata_endpoint: the EC2 metadata service; empty is the real one.
        lifecycle_hook: of the Auto Scaling group, completed when all is committed; empty: as the instance's tag says.
        auto_scaling_group: whose hook it is; empty: as the instance's tag says.
        poll_interval_s: between two looks for a notice.
        idle_exit_s: see `private`.
        stop_grace_s: after SIGTERM, how long trainers and uploads may take; where a service manager grants more, that
            long without an upload advancing.
        slots: how many snapshots of a run may lie in the spool.
        reserve_bytes: memory that staging leaves free.
        log_format: how the lines of the log are written.
        upload_limit: the most bytes per second that all runs together upload; 0 is as many as go.
        spool_quota_bytes: the most that the slots of all runs together may take; 0 is as much as there is room for.
    """

    private: bool = False
    detach: bool = False
    runtime_dir: Path = field(default_factory=paths.runtime_dir)
    spool_dir: Path = field(default_factory=paths.spool_dir)
    disk_dir: Path = field(default_factory=paths.disk_dir)
    metadata_endpoint: str = ""
    lifecycle_hook: str = ""
    auto_scaling_group: str = ""
    poll_interval_s: float = 5.0
    idle_exit_s: float = 30.0
    stop_grace_s: float = 90.0
    slots: int = 3
    reserve_bytes: int = 512 << 20
    log_format: LogFormat = "key=value"
    upload_limit: float = field(default_factory=upload_limit)
    spool_quota_bytes: int = field(default_factory=spool_quota)

    def __post_init__(self) -> None:
        for name in ("poll_interval_s", "idle_exit_s", "stop_grace_s"):
            if not 0 < getattr(self, name) < 86400:
                raise SettingError(f"{name}={getattr(self, name)!r} is not between 0 s and a day", hint="give seconds")
        if self.log_format not in LOG_FORMATS:
            raise SettingError(f"log_format={self.log_format!r} is not known", hint=f"one of {', '.join(LOG_FORMATS)}")
        if self.slots < 1:
            raise SettingError(f"slots={self.slots} is less than one", hint="give 1 to 3")
        if self.reserve_bytes < 0:
            raise SettingError(f"reserve_bytes={self.reserve_bytes} is less than none", hint="give 0 or more")
        for name in ("runtime_dir", "spool_dir", "disk_dir"):
            object.__setattr__(self, name, Path(getattr(self, name)).absolute())
