"""Files that the command line writes: whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from spotckpt.errors import UsageError
from spotckpt.moving.atomic import place


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, durably, when the body ends; if it raises, `path` is as it was.

    Of a link, the place of the file that it leads to.

    Raises:
        UsageError: it cannot be written, or is there and no file.
    """
    path = place(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}", hint="give another file") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """The whole file at once. Raises as `whole_file` does."""
    with whole_file(path) as file:
        file.write(data)


def _sync_folder(path: Path) -> None:
    """Not every file system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
