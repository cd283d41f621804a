"""One bucket's requests: s3fs's client in fsspec's event loop, each under a deadline, errors translated.

`with fs.open(key, "wb")` is never used: an exception inside of it publishes the truncated object.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import fsspec.asyn
import tenacity
from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3fs import S3FileSystem

from spotckpt.deadline import Deadline
from spotckpt.errors import LimitExceeded, Unavailable
from spotckpt.store.base import MIB
from spotckpt.store.retry import policy
from spotckpt.store.session import Session
from spotckpt.store.translate import translate

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 20.0
SLOWEST_BYTES_PER_S = MIB / 4
"""A request slower than this is given up and tried again, even when its deadline is far."""


class _OneTry(AIOHTTPSession):  # type: ignore[misc]
    """aiohttp sends a PUT whose connection broke a second time, on its own: a lost reply would look like a conflict."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


_CONFIG = {
    "http_session_cls": _OneTry,
    # Retrying is the only one who tries again; botocore's default mode and count differ between versions.
    "retries": {"mode": "standard", "total_max_attempts": 1},
    "connect_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": ANSWER_TIMEOUT_S,
    "max_pool_connections": 32,
    # The bytes carry a checksum of their own; signing them as well costs a SHA-256 of everything.
    "s3": {"payload_signing_enabled": False},
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}
_FOREIGN = (ClientError, BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError, ValueError, LookupError)
_INHERITED: list[object] = []
"""Clients of the process that this one was forked from: never used, never closed, their sockets are the parent's."""


@dataclass(frozen=True)
class Call:
    """What a request is for: the store's verb, the key with the store's URI, the deadline, and whether it writes."""

    operation: str
    key: str
    deadline: Deadline
    mutates: bool = False


class Client:
    """Requests to one bucket. Threads may share it; after a fork it connects anew."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._pid = 0
        self._fs: S3FileSystem | None = None

    def run(self, call: Call, coroutine: Coroutine[Any, Any, T]) -> T:
        """Waits for the coroutine, which has the call's deadline itself; leaving early (Ctrl-C) cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result(timeout=min(call.deadline.seconds_left, 86400.0) + ANSWER_TIMEOUT_S)
        except FutureTimeoutError as error:
            late = TimeoutError("the event loop does not answer")
            raise translate(late, operation=call.operation, key=call.key, mutates=call.mutates) from error
        finally:
            future.cancel()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts the coroutine in the event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, fsspec.asyn.get_loop())

    async def request(self, method: str, call: Call, **parameters: Any) -> dict[str, Any]:
        """One request, one try.

        Args:
            method: the client's method, as in `put_object`.
            call: what it is for.
            parameters: for the method; a `Body` counts for the time that it may take.
        """

        async def attempt() -> dict[str, Any]:
            client = await self._connected()
            found: dict[str, Any] = await getattr(client, method)(**parameters)
            return found

        return await self._limited(attempt(), call, _body_bytes(parameters))

    async def get(self, call: Call, *, limit_bytes: int, **parameters: Any) -> bytes:
        """The body of a GET, one try; the length is checked before anything is read."""

        async def attempt() -> bytes:
            client = await self._connected()
            answer = await client.get_object(**parameters)
            async with answer["Body"] as body:
                length = answer["ContentLength"]
                if length > limit_bytes:
                    body.close()
                    raise LimitExceeded(f"{call.key} has {length} bytes, at most {limit_bytes} are expected")
                data: bytes = await body.read()
            if len(data) != length:
                raise Unavailable(call.operation, call.key, f"{len(data)} of {length} bytes came")
            return data

        return await self._limited(attempt(), call, limit_bytes)

    async def retried(self, attempt: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """A part of a bulk transfer, tried up to four times, so that one lost part does not cost the whole."""
        settings = policy(deadline)
        settings["stop"] = tenacity.stop_any(settings["stop"], tenacity.stop_after_attempt(4))
        return await tenacity.AsyncRetrying(**settings)(attempt)

    def close(self) -> None:
        """Closes the connections; a later request opens new ones."""
        fs, self._fs = self._fs, None
        if fs is not None:
            _close(self._pid, fs)

    async def _limited(self, attempt: Coroutine[Any, Any, T], call: Call, size_bytes: int) -> T:
        patience_s = CONNECT_TIMEOUT_S + ANSWER_TIMEOUT_S + size_bytes / SLOWEST_BYTES_PER_S
        limit_s = min(call.deadline.seconds_left, patience_s)
        if limit_s <= 0:
            attempt.close()
            raise Unavailable(call.operation, call.key, "its deadline has passed")
        try:
            return await asyncio.wait_for(attempt, limit_s)
        except asyncio.TimeoutError as error:
            late = TimeoutError(f"no answer within {limit_s:.1f} s")
            raise translate(late, operation=call.operation, key=call.key, mutates=call.mutates) from error
        except _FOREIGN as error:
            raise translate(error, operation=call.operation, key=call.key, mutates=call.mutates) from error

    async def _connected(self) -> Any:
        return await self._filesystem().set_session()

    def _filesystem(self) -> S3FileSystem:
        # Only ever called in the event loop's thread: no lock, which a fork could leave locked.
        if self._fs is not None and self._pid != os.getpid():
            _INHERITED.append(self._fs)
            self._fs = None
        if self._fs is None:
            self._pid = os.getpid()
            self._fs = self._connect()
        return self._fs

    def _connect(self) -> S3FileSystem:
        session = Session(self._environment)
        fs = S3FileSystem(
            anon=False,
            session=session,
            asynchronous=True,  # its own finalizer would close, in a forked child, what belongs to the parent
            client_kwargs={"region_name": session.region} if session.region else {},
            config_kwargs=_CONFIG,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        weakref.finalize(self, _close, os.getpid(), fs)
        return fs


def _close(pid: int, fs: S3FileSystem) -> None:
    client = fs._s3
    loop = fsspec.asyn.loop[0]
    if client is None or pid != os.getpid() or loop is None or not loop.is_running() or sys.is_finalizing():
        return
    fs._s3 = None
    if threading.current_thread() is fsspec.asyn.iothread[0]:
        loop.create_task(client.__aexit__(None, None, None))
        return
    closing = asyncio.run_coroutine_threadsafe(client.__aexit__(None, None, None), loop)
    try:
        closing.result(timeout=1.0)
    except FutureTimeoutError:
        closing.cancel()


def _body_bytes(parameters: Mapping[str, Any]) -> int:
    return parameters["Body"].getbuffer().nbytes if "Body" in parameters else 0
