"""One bucket's requests: botocore says what to send and what the answer means, `wire` sends it.

botocore knows credentials, signatures, endpoints and errors; its own connections know no deadline for an exchange, copy
bodies and try again on their own. So each request is answered in its `before-send` event, before they are asked.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any, TypeVar

import tenacity
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import get_cert_path
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies

from spotckpt.deadline import Deadline
from spotckpt.errors import LimitExceeded, Unavailable
from spotckpt.store.base import require_time, size_of
from spotckpt.store.body import Body
from spotckpt.store.bounded import LateError, in_time
from spotckpt.store.connection import Limits
from spotckpt.store.credentials import Credentials
from spotckpt.store.halt import Halt
from spotckpt.store.retry import policy
from spotckpt.store.translate import EXPIRED, stale_credentials, translate
from spotckpt.store.wire import Outgoing, Pool, WireError, read_into, read_small

T = TypeVar("T")
Take = Callable[[HTTPResponse], None]

MOST_TRIES = 4
PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Between looks for credentials after a service gave the refused ones again."""
_FINDING = "to find credentials"

_CONFIG = Config(
    # Retrying is the only one who tries again; botocore's default mode and count differ between versions.
    retries={"mode": "standard", "total_max_attempts": 1},
    # The bytes carry a checksum of their own; signing them as well costs a SHA-256 of everything.
    s3={"payload_signing_enabled": False},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)
_FOREIGN = (ClientError, BotoCoreError, ResponseParserError, WireError, OSError, ValueError, LookupError)


@dataclass(frozen=True)
class Call:
    """What requests are for: the store's verb, the key with the store's URI, until when, and whether they write."""

    operation: str
    key: str
    deadline: Deadline
    mutates: bool = False
    halt: Halt = field(default_factory=Halt)
    pace: Callable[[int], None] | None = None
    sent: Callable[[int], None] | None = None


class Client:
    """Requests with one environment's credentials and endpoint. Threads may share it; a fork's child begins anew."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._here: _Here | None = None
        self._connecting = {0: threading.Lock()}

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Client:
        """The client of that environment, which stores share: what botocore knows of S3 takes time and memory."""
        name = tuple(sorted(environment.items()))
        return _SHARED.setdefault(name, cls(environment))

    def request(self, method: str, call: Call, **parameters: Any) -> dict[str, Any]:
        """One request, one try.

        Args:
            method: botocore's name of it, as in `put_object`.
            call: what it is for.
            parameters: for the method.
        """
        return self._do(method, call, None, parameters)

    def read(self, call: Call, *, limit_bytes: int, **place: str) -> bytes:
        """An object's bytes, one try; the length is checked before anything is read."""
        data: list[bytes] = []

        def take(response: HTTPResponse) -> None:
            if (response.length or 0) > limit_bytes:
                raise LimitExceeded(f"{call.key} has {response.length} bytes, at most {limit_bytes} are expected")
            data[:] = [response.read(limit_bytes)]
            if response.read(1):
                raise LimitExceeded(f"{call.key} has more than the {limit_bytes} bytes that are expected")
            if response.length:
                raise Unavailable(call.operation, call.key, f"it ended {response.length} bytes too early")

        self._do("get_object", call, take, place)
        return data[0]

    def fill(self, call: Call, offset: int, buffers: Sequence[memoryview], *, etag: str, **place: str) -> int:
        """A range of that version of the object straight into the buffers, one try; its length."""
        size_bytes = size_of(buffers)

        def take(response: HTTPResponse) -> None:
            if response.length not in (None, size_bytes):
                raise Unavailable(call.operation, call.key, f"{response.length} of {size_bytes} bytes came")
            count = read_into(response, buffers)
            if count != size_bytes or response.read(1):
                raise Unavailable(call.operation, call.key, f"{count} of {size_bytes} bytes came")

        asked = {"Range": f"bytes={offset}-{offset + size_bytes - 1}", "IfMatch": etag}
        self._do("get_object", call, take, {**asked, **place})
        return size_bytes

    def retried(self, attempt: Callable[[], T], call: Call) -> T:
        """A part of a bulk transfer, tried up to four times, so that one lost part does not cost the whole."""
        settings = policy(call.deadline)
        too_late = settings["stop"]
        settings["stop"] = lambda state: state.attempt_number >= MOST_TRIES or call.halt.is_set or too_late(state)
        return tenacity.Retrying(**settings, sleep=call.halt.sleep)(attempt)

    def close(self) -> None:
        """Closes the connections; a later request opens new ones."""
        if self._here is not None and self._here.pid == os.getpid():
            self._here.pool.close()

    def _do(self, method: str, call: Call, take: Take | None, parameters: Mapping[str, Any]) -> dict[str, Any]:
        require_time(call.operation, call.key, call.deadline)
        try:
            here = self._connected(call.deadline)
            here.credentials.keep(call.deadline)  # before they are noted: what it brings may be refused, too
            used = here.credentials.now
            try:
                return here.request(method, call, take, parameters)
            except ClientError as error:
                if not _says_expired(error):
                    raise
                renewed = self._renewed(here.credentials, used, call, error)
                return renewed.request(method, call, take, parameters)
        except _FOREIGN as error:
            raise translate(error, operation=call.operation, key=call.key, mutates=call.mutates) from error

    def _connected(self, deadline: Deadline) -> _Here:
        here = self._here
        if here is None or not here.is_usable:
            with self._lock():
                here = self._here
                if here is None or not here.is_usable:
                    here = self._here = in_time(_FINDING, lambda: _Here(Credentials(self._environment)), deadline)
        return here

    def _renewed(self, refused: Credentials, used: Any, call: Call, refusal: ClientError) -> _Here:
        """With other credentials than were used, as the environment, files and services give them now.

        A service may go on for a while giving those that have ended: it is asked a few times.

        Raises:
            ClientError: there are no others, which is the refusal itself.
            NoCredentials: a service gives no others.
        """
        for pause_s in (0.0, *PAUSES_S) if refused.are_lent else (0.0,):
            if call.halt.is_set or pause_s > call.deadline.seconds_left:
                break
            call.halt.sleep(pause_s)
            with self._lock():
                here = self._with_others(used, call.deadline)
            if here is not None:
                return here
        if refused.are_lent:
            raise stale_credentials(refusal, refused.source, operation=call.operation, key=call.key) from refusal
        raise refusal

    def _with_others(self, used: Any, deadline: Deadline) -> _Here | None:
        here = self._here
        if here is not None and here.is_usable and here.credentials.now != used:
            return here  # another thread found them
        try:
            found = in_time(_FINDING, lambda: Credentials(self._environment), deadline)
        except (BotoCoreError, LateError):
            return None  # whoever gives them may answer when asked again; the refusal is what to tell
        if found.now in (None, used):
            return None
        self._here = _Here(found)
        return self._here

    def _lock(self) -> threading.Lock:
        # A lock of this process: one that the parent held while it forked would never be free here.
        return self._connecting.setdefault(os.getpid(), threading.Lock())


_SHARED: weakref.WeakValueDictionary[tuple[tuple[str, str], ...], Client] = weakref.WeakValueDictionary()


class _Here:
    """What one process has of the client: nothing in it survives a fork."""

    def __init__(self, credentials: Credentials) -> None:
        self.pid = os.getpid()
        self.credentials = credentials
        session = credentials.session
        self._botocore = session.create_client("s3", region_name=session.region, config=_CONFIG)
        self._botocore.meta.events.register("before-send.s3", self._answer)
        trusted = session.get_config_variable("ca_bundle") or get_cert_path(True)
        self.pool = Pool(trusted, proxy_of=_proxy_of)
        self._asked = threading.local()
        weakref.finalize(self, self.pool.close)

    @property
    def is_usable(self) -> bool:
        """Whether it is this process's, and can sign: where no credentials were found there may be some now."""
        return self.pid == os.getpid() and self.credentials.now is not None

    def request(self, method: str, call: Call, take: Take | None, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """One request; `take` reads the body of a GET's good answer."""
        self._asked.now = call, take
        try:
            answer: dict[str, Any] = getattr(self._botocore, method)(**parameters)
        finally:
            del self._asked.now
        return answer

    def _answer(self, request: AWSPreparedRequest, event_name: str, **_: Any) -> AWSResponse:
        call, take = self._asked.now
        of_object = take is not None and event_name.endswith(".GetObject")
        body: list[bytes] = []

        def take_answer(response: HTTPResponse) -> None:
            if of_object and response.status < 300:
                take(response)
            else:
                body.append(read_small(response))

        outgoing = Outgoing(request.method, request.url, _text(request.headers), _buffers(request.body))
        of_body = (call.pace, call.sent) if isinstance(request.body, Body) else ()
        limits = Limits(call.deadline, call.halt, *of_body)
        response = self.pool.exchange(outgoing, limits, take_answer)
        return AWSResponse(request.url, response.status, response.headers, _Taken(b"".join(body)))


class _Taken:
    """A body that has been read, as botocore wants to read it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, *_: Any) -> Iterator[bytes]:
        yield self._data

    def read(self, *_: Any) -> bytes:
        return self._data


def _says_expired(error: ClientError) -> bool:
    return error.response.get("Error", {}).get("Code") in EXPIRED


def _buffers(body: Any) -> Sequence[memoryview]:
    if isinstance(body, Body):
        return body.buffers
    if body is None:
        return ()
    return (memoryview(body.encode() if isinstance(body, str) else bytes(body)),)


def _text(headers: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value.decode("latin-1") if isinstance(value, bytes) else str(value) for name, value in headers.items()
    }


def _proxy_of(url: str) -> str | None:
    proxies: dict[str, str] = get_environ_proxies(url)
    return proxies.get(url.partition(":")[0])
