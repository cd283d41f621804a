"""Where the agent's socket and spool are."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from spotckpt.errors import AgentError

SOCKET_NAME = "agent.sock"
LOG_NAME = "agent.log"
_SOCKET_PATH_LIMIT = 107  # sun_path of unix(7), without its closing NUL


def runtime_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the socket is: SPOTCKPT_RUNTIME_DIR, systemd's RUNTIME_DIRECTORY, XDG_RUNTIME_DIR/spotckpt, or in /tmp."""
    if chosen := environ.get("SPOTCKPT_RUNTIME_DIR"):
        return Path(chosen)
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":", 1)[0])
    if session := environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "spotckpt"
    return Path(f"/tmp/spotckpt-{os.getuid()}")


def spool_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where snapshots are staged: SPOTCKPT_SPOOL, else in /dev/shm, else (there is none) on disk."""
    if chosen := environ.get("SPOTCKPT_SPOOL"):
        return Path(chosen)
    if os.access("/dev/shm", os.W_OK | os.X_OK):
        return Path(f"/dev/shm/spotckpt-{os.getuid()}")
    return disk_dir(environ)


def disk_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where slots go that do not fit into memory: systemd's CACHE_DIRECTORY, which trainers see, else in /var/tmp."""
    if given := environ.get("CACHE_DIRECTORY"):
        return Path(given.split(":", 1)[0])
    return Path(f"/var/tmp/spotckpt-{os.getuid()}")


def socket_path(runtime: Path) -> Path:
    """The agent's socket.

    Raises:
        AgentError: the path is longer than the kernel takes.
    """
    path = runtime / SOCKET_NAME
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
        raise AgentError(
            f"socket path {path} is longer than {_SOCKET_PATH_LIMIT} bytes",
            hint="set SPOTCKPT_RUNTIME_DIR to a shorter directory",
        )
    return path


def make_private_dir(path: Path) -> None:
    """Makes the directory with mode 0700 if it is not there, and checks that it is ours alone.

    Raises:
        AgentError: it is a link, another user's, or open to others.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise AgentError(
            f"directory {path} cannot be made: {error.strerror}",
            hint="set SPOTCKPT_RUNTIME_DIR or SPOTCKPT_SPOOL to a directory that you can write",
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise AgentError(f"{path} is not a directory", hint="remove it or choose another directory")
    if found.st_uid != os.getuid():
        raise AgentError(
            f"directory {path} belongs to uid {found.st_uid}, not {os.getuid()}", hint="choose another directory"
        )
    if found.st_mode & 0o022:
        raise AgentError(f"directory {path} can be written by others", hint=f"chmod 700 {path}")
