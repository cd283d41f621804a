"""Files that are there wholly or not at all, and that last.

A file is written under a temporary name, synced, and only then linked (`link`) or renamed to its own, and its directory
synced (`sync_name`). What could not be synced is thrown away and written anew: a sync that is repeated after an error
says that all is well when it is not. `link` fails if the name is taken, so creation is exclusive between processes;
fsspec's own exclusive mode checks first and writes later, which two writers can both pass.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spotckpt.errors import BucketMissing, ConditionsIgnored, OutcomeUnknown, Unavailable
from spotckpt.store.base import TEMPORARY
from spotckpt.store.os_errors import from_os_error, translated

_TRIES = 5
_TEMPORARY_NAME = re.compile(re.escape(TEMPORARY) + r"[0-9]+-[0-9a-f]{16}-(?P<name>[^/]+)")


def final_name(name: str) -> str | None:
    """What a file with that name was to be called when it is complete; None if it is no temporary one of ours."""
    match = _TEMPORARY_NAME.fullmatch(name)
    return match["name"] if match else None


@contextmanager
def written(operation: str, path: Path, blocks: Iterable[memoryview]) -> Iterator[Path]:
    """A temporary file beside `path` with these bytes, synced; it is gone afterwards if nobody gave it another name.

    Raises:
        StoreError: it cannot be written. What the iterable raises passes through.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}-{path.name}")
    try:
        descriptor = _open_new(operation, path, temporary)
        try:
            for block in blocks:
                with translated(operation, path):
                    _write_all(descriptor, block)
            with translated(operation, path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def link(temporary: Path, path: Path) -> None:
    """Gives a file its name, which must be free.

    Raises:
        AlreadyExists: it is not.
        ConditionsIgnored: the file system cannot do that.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise ConditionsIgnored(
                "create", str(path), "the file system has no hard links", hint="choose a place on another one"
            ) from error
        raise from_os_error(error, operation="create", key=str(path)) from error


def sync_name(operation: str, path: Path) -> None:
    """Makes the file's name last. Raises OutcomeUnknown if that fails: it may last or not."""
    try:
        sync_directory(path.parent)
    except OSError as error:
        raise OutcomeUnknown(operation, str(path), f"its directory cannot be synced: {error.strerror}") from error


def sync_directory(directory: Path) -> None:
    """Makes the directory's names last, and what was removed of them stay so."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_new(operation: str, path: Path, temporary: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    for _ in range(_TRIES):
        _make_parent(operation, path)
        try:
            return os.open(temporary, flags, 0o666)
        except FileNotFoundError:  # somebody deleted the last file of the directory just now
            continue
        except OSError as error:
            raise from_os_error(error, operation=operation, key=str(path)) from error
    raise Unavailable(operation, str(path.parent), "the directory goes away again and again")


def _make_parent(operation: str, path: Path) -> None:
    try:
        _make_directory(path.parent)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        hint = "choose a directory that can be made"
        cause = f"{error.filename} cannot be made: {error.strerror}"
        raise BucketMissing(operation, str(path), cause, hint=hint) from error
    except OSError as error:
        raise from_os_error(error, operation=operation, key=str(path)) from error


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    try:
        sync_directory(directory.parent)
    except OSError:
        with suppress(OSError):  # not to be found and trusted by the next try
            directory.rmdir()
        raise


def _write_all(descriptor: int, rest: memoryview) -> None:
    while len(rest):
        rest = rest[os.write(descriptor, rest) :]
