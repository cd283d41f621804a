"""Small files that must be there wholly or not at all, also when the writer is killed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Replaces the file: temporary file, fsync, rename, fsync of the directory.

    One writer per file. A temporary file left by a writer that was killed is overwritten by the next one. What could
    not be written or synced is thrown away: a second fsync of it would succeed without having written it.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def remove_durably(path: Path) -> None:
    """Removes the file, if it is there; when this returns it stays removed."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Makes the directory's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
