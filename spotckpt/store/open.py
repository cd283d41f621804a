"""From a URI to a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from spotckpt.deadline import SYSTEM_CLOCK, Clock
from spotckpt.errors import AddressError
from spotckpt.store.base import Store
from spotckpt.store.environment import ENVIRONMENT_NAMES, aws_environment
from spotckpt.store.limiter import Limiter, Pace, both
from spotckpt.store.local import LocalStore
from spotckpt.store.retry import Retrying

__all__ = ["ENVIRONMENT_NAMES", "aws_environment", "open_store"]


def open_store(
    uri: str,
    *,
    environment: Mapping[str, str] | None = None,
    call_timeout_s: float = 60.0,
    clock: Clock = SYSTEM_CLOCK,
    bandwidth_limit: float | None = None,
    share: Pace | None = None,
    sent: Callable[[int], None] | None = None,
) -> Store:
    """The store below a URI, with retries. Nothing is asked of it yet.

    Args:
        uri: `s3://bucket/path`, `file:///path` or another protocol of fsspec.
        environment: AWS_* names that take the place of `os.environ`'s (see `ENVIRONMENT_NAMES`).
        call_timeout_s: the deadline of a call that is given none.
        clock: for deadlines and for waiting between tries.
        bandwidth_limit: how many bytes a second `put` may send; None is as fast as it goes.
        share: of a limit that this store has in common with others.
        sent: told of the bytes of a `put` as they go, confirmed or not, where the store can tell; raising in it gives
            the transfer up.

    Raises:
        AddressError: the protocol is unknown, or its package is not installed.
    """
    given = dict(os.environ) if environment is None else dict(environment)
    own = None if bandwidth_limit is None else Limiter(bandwidth_limit, clock)
    return Retrying(_plain(uri, given, both(own, share), sent, call_timeout_s=call_timeout_s, clock=clock))


def _plain(
    uri: str,
    environment: Mapping[str, str],
    limiter: Pace | None,
    sent: Callable[[int], None] | None,
    **options: Any,
) -> Store:
    protocol, _, path = uri.rpartition("://")
    if protocol in ("", "file", "local"):
        return LocalStore(path, limiter=limiter, **options)
    if protocol in ("s3", "s3a"):
        from spotckpt.store.s3 import S3Store

        return S3Store(uri, environment=environment, limiter=limiter, sent=sent, **options)
    return _generic(uri, protocol, **options)


def _generic(uri: str, protocol: str, **options: Any) -> Store:
    import fsspec
    from fsspec.registry import known_implementations

    from spotckpt.store.generic import FsspecStore

    try:
        fs, root = fsspec.core.url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise AddressError(f"{uri}: {protocol}:// needs a package that is not installed", hint=str(error)) from error
    except ValueError as error:
        if protocol in known_implementations:
            raise AddressError(f"{uri}: {error}", hint="write it as s3://bucket/path") from error
        hint = "use s3://, file:// or another protocol of fsspec, as gs:// or sftp://"
        raise AddressError(f"{uri}: the scheme {protocol}:// is not known", hint=hint) from error
    return FsspecStore(fs, root, uri=uri, **options)
