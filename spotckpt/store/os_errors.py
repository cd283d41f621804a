"""What the operating system, or a file system of fsspec, says becomes an error of ours."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spotckpt.errors import AlreadyExists, Denied, NotFound, OutcomeUnknown, StoreError, Unavailable
from spotckpt.store.bounded import LateError

_Verdict = tuple[type[StoreError], str]
_BY_ERRNO: dict[int, _Verdict] = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), (NotFound, "")),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), (Denied, "allow it for this user, or choose another place")
    ),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), (StoreError, "free space there, or choose another place")),
    errno.EEXIST: (AlreadyExists, "another writer was there first"),
}


def from_os_error(error: OSError, *, operation: str, key: str, mutates: bool = False) -> StoreError:
    """The error of ours that says the same.

    Args:
        error: what was raised.
        operation: the store's verb.
        key: the object with the store's URI, or the path.
        mutates: it was a write over a network, whose outcome is unknown when the connection is lost.
    """
    cause = error.strerror or one_line(error)
    kind, hint = _BY_ERRNO.get(error.errno or 0) or _by_class(error, mutates)
    return kind(operation, key, cause, hint=hint)


@contextmanager
def translated(operation: str, path: Path) -> Iterator[None]:
    """Inside, what the operating system says of that path becomes an error of ours."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, operation=operation, key=str(path)) from error


def _by_class(error: OSError, mutates: bool) -> _Verdict:
    if isinstance(error, socket.gaierror | ConnectionRefusedError | LateError):
        return Unavailable, "check the address and the network"
    if isinstance(error, TimeoutError | ConnectionError):
        return OutcomeUnknown if mutates else Unavailable, "check the network"
    # fsspec raises these without a number.
    kinds = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST, PermissionError: errno.EACCES}
    return next((_BY_ERRNO[number] for kind, number in kinds.items() if isinstance(error, kind)), (StoreError, ""))


def one_line(error: Exception) -> str:
    """What it says, and its kind where that alone says something."""
    text = " ".join(str(error).split())
    return text if text and not isinstance(error, ValueError | LookupError) else f"{type(error).__name__}: {text}"
