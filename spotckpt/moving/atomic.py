"""A file or directory that is there wholly or not at all: a temporary name, everything synced, then the rename."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spotckpt.errors import UsageError


@contextmanager
def made(destination: Path) -> Iterator[Path]:
    """A name beside the destination to write to, file or directory; it becomes the destination if nothing is raised.

    A file is replaced; of a link, the file that it leads to. A process that is killed leaves the temporary name behind,
    and the next one removes it.

    Raises:
        UsageError: the destination is there and no file, or cannot be written.
    """
    destination = place(destination)
    for left in destination.parent.glob(f".{glob_escaped(destination.name)}.spotckpt-tmp-*"):
        _remove(left)
    temporary = destination.parent / f".{destination.name}.spotckpt-tmp-{secrets.token_hex(4)}"
    try:
        with translated(destination):
            yield temporary
            _sync_tree(temporary)
            temporary.replace(destination)
            sync(destination.parent)
    except BaseException:
        _remove(temporary)
        raise


def place(destination: Path) -> Path:
    """The name itself, or where a link of that name leads to. Raises UsageError if nothing can be made there."""
    destination = destination.resolve() if destination.is_symlink() else destination
    if destination.is_dir():
        raise UsageError(f"{destination} is a directory that is there already", hint="remove it, or give another name")
    if destination.exists() and not destination.is_file():  # a device, a pipe: root would put a file in its place
        raise UsageError(f"{destination} is no file", hint="give another name")
    if not destination.parent.is_dir():
        raise UsageError(f"{destination.parent} is no directory", hint="create it first")
    return destination


def glob_escaped(name: str) -> str:
    """The name where a pattern is wanted."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns what the system says into an error that names the path."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space, or write elsewhere" if full else "write elsewhere"
        raise UsageError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


def require_room(path: Path, size_bytes: int) -> None:
    """Raises UsageError if the file system lacks the room: torch's own error names neither path nor size."""
    free = shutil.disk_usage(path.parent).free
    if free < size_bytes:
        raise UsageError(
            f"{path.parent} has {free} bytes free, and {size_bytes} are needed", hint="free some, or write elsewhere"
        )


def sync(path: Path) -> None:
    """Makes a file or a directory last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(path: Path) -> None:
    for directory, _, files in os.walk(path):
        for name in files:
            sync(Path(directory) / name)
    sync(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
