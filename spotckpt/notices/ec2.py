"""The EC2 instance metadata service, by IMDSv2, without proxies and without redirects.

Answers: Amazon EC2 User Guide, "Use the Instance Metadata Service to access instance metadata".
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from spotckpt.deadline import SYSTEM_CLOCK, Clock
from spotckpt.errors import SettingError
from spotckpt.notices import parse
from spotckpt.notices.notice import Notice
from spotckpt.notices.parse import Reply

ENDPOINT = "http://169.254.169.254"
ENDPOINT_IPV6 = "http://[fd00:ec2::254]"
TOKEN_TTL_S = 21600
_BODY_LIMIT_BYTES = 64 << 10

PATHS: Mapping[str, Callable[[Reply], list[Notice]]] = {
    "/latest/meta-data/spot/instance-action": parse.parse_instance_action,
    "/latest/meta-data/events/recommendations/rebalance": parse.parse_rebalance,
    "/latest/meta-data/events/maintenance/scheduled": parse.parse_scheduled_events,
    "/latest/meta-data/autoscaling/target-lifecycle-state": parse.parse_lifecycle_state,
}

State = Literal["answers", "absent", "disabled", "failing"]
"""absent: there is no such service here. disabled: it refuses. failing: it should answer, but does not now."""

HOP_LIMIT_HINT = (
    "the connection stands but the token's answer is lost: in a container the instance needs "
    "`aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2`"
)


@dataclass(frozen=True)
class Poll:
    """One look: what is known now, and how the service behaved. A path that failed shows what it showed before."""

    notices: tuple[Notice, ...]
    state: State
    detail: str = ""


class _Trouble(Exception):
    def __init__(self, state: State, detail: str) -> None:
        super().__init__(detail)
        self.state: State = state


@dataclass(frozen=True)
class _Answer:
    status: int
    reply: Reply


def choose_endpoint(explicit: str, environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Where to ask, and a warning or the empty string. An empty endpoint: do not ask at all.

    The endpoint in the environment is not followed: whoever can set a variable could otherwise feign or hide an
    interruption.

    Raises:
        SettingError: the explicit endpoint is not http://HOST[:PORT].
    """
    if explicit:
        if not _is_endpoint(explicit):
            raise SettingError(f"metadata endpoint {explicit!r} is not http://HOST:PORT", hint="leave out any path")
        return explicit.rstrip("/"), ""
    warning = ""
    if elsewhere := environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"):
        warning = f"AWS_EC2_METADATA_SERVICE_ENDPOINT={elsewhere} is ignored; to mean it, pass --metadata-endpoint"
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return "", warning
    ipv6 = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower() == "ipv6"
    return (ENDPOINT_IPV6 if ipv6 else ENDPOINT), warning


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:  # brackets that do not match; a port that is none
        return False
    beyond = parts.path.strip("/") or parts.query or parts.fragment
    return parts.scheme == "http" and bool(parts.hostname) and not beyond


class Ec2Metadata:
    """A source of notices, over one connection that is kept. Not for several threads at once.

    Args:
        endpoint: `http://HOST[:PORT]`, as `choose_endpoint` gives it.
        clock: for deadlines.
        timeout_s: of one connection and of one wait for bytes.
    """

    def __init__(self, endpoint: str, *, clock: Clock = SYSTEM_CLOCK, timeout_s: float = 2.0) -> None:
        parts = urlsplit(endpoint)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)
        self._clock = clock
        self._token = ""
        self._ever_answered = False
        self._shown: dict[str, list[Notice]] = {}
        self._deadlines: dict[str, float] = {}

    def poll(self) -> Poll:
        """Asks for everything. Never raises for what the service does."""
        state: State = "answers"
        detail, answered = "", False
        for path, parser in PATHS.items():
            try:
                self._shown[path] = self._look(path, parser)
                answered = True
            except _Trouble as trouble:
                state, detail = trouble.state, str(trouble)
                if not self._token:  # the other paths would wait for one in vain, too
                    if state in ("absent", "disabled"):
                        self._shown.clear()
                    break
        notices = tuple(notice for found in self._shown.values() for notice in found)
        # one path in trouble (a proxy's 403, a reply that cannot be read) must not slow down the look at the others
        return Poll(notices, "answers" if answered else state, detail)

    def close(self) -> None:
        """Ends the connection; the next look opens another."""
        self._connection.close()

    def text(self, path: str) -> str:
        """What lies at that path, such as `/latest/meta-data/instance-id`; empty if nothing does, or it fails."""
        try:
            answer = self._get(path)
        except _Trouble:
            return ""
        return answer.reply.body.strip()[:256] if answer.status == 200 else ""

    def _look(self, path: str, parser: Callable[[Reply], list[Notice]]) -> list[Notice]:
        answer = self._get(path)
        if answer.status == 404:
            return []
        try:
            return [self._steady(notice) for notice in parser(answer.reply)]
        except parse.Unreadable as error:
            raise _Trouble("failing", str(error)) from error

    def _steady(self, notice: Notice) -> Notice:
        """The earliest deadline of all sights: each may be late by the fraction of a second that `Date` lacks."""
        if notice.deadline is None:
            return notice
        least = min(notice.deadline, self._deadlines.get(notice.id, notice.deadline))
        self._deadlines[notice.id] = least
        return replace(notice, deadline=least)

    def _get(self, path: str) -> _Answer:
        if not self._token:
            self._token = self._mint_token()
        answer = self._request("GET", path, {"X-aws-ec2-metadata-token": self._token})
        if answer.status == 401:
            self._token = self._mint_token()
            answer = self._request("GET", path, {"X-aws-ec2-metadata-token": self._token})
        if answer.status in (200, 404):
            return answer
        if answer.status == 401:
            self._token = ""
        raise _Trouble("disabled" if answer.status == 403 else "failing", f"GET {path}: status {answer.status}")

    def _mint_token(self) -> str:
        self._token = ""
        answer = self._request(
            "PUT",
            "/latest/api/token",
            {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S), "Content-Length": "0"},
        )
        token = answer.reply.body.strip()
        if answer.status == 200 and token.isascii() and token.isprintable() and 0 < len(token) <= 1024:
            self._ever_answered = True
            return token
        if answer.status == 403:
            raise _Trouble("disabled", "the metadata service is disabled for this instance")
        # other clouds' services at the same address do not know this path
        unknown = answer.status in (404, 405, 501) and not self._ever_answered
        raise _Trouble("absent" if unknown else "failing", f"PUT /latest/api/token: status {answer.status}")

    def _request(self, method: str, path: str, headers: Mapping[str, str]) -> _Answer:
        was_kept = self._connection.sock is not None
        try:
            return self._exchange(method, path, headers)
        except _Trouble as trouble:
            # the service may end a connection that nothing was asked on for a while
            if was_kept and isinstance(trouble.__cause__, ConnectionError):
                return self._exchange(method, path, headers)
            raise

    def _exchange(self, method: str, path: str, headers: Mapping[str, str]) -> _Answer:
        connection = self._connection
        if connection.sock is None:
            self._connect()
        sent_at, wall = self._clock.now(), self._clock.wall()
        answered = False
        try:
            connection.request(method, path, headers=dict(headers))
            response = connection.getresponse()
            body = response.read(_BODY_LIMIT_BYTES).decode("utf-8", errors="replace")
            answered = response.isclosed()
        except TimeoutError as error:
            hint = f"; {HOP_LIMIT_HINT}" if method == "PUT" else ""
            raise _Trouble("failing", f"{method} {path}: no answer in {connection.timeout:g} s{hint}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Trouble("failing", f"{method} {path}: {type(error).__name__}: {error}") from error
        finally:
            if not answered:  # what is left of the answer must not be taken for the next one's
                connection.close()
        return _Answer(response.status, Reply(body, response.headers.get("Date", ""), sent_at, wall))

    def _connect(self) -> None:
        try:
            self._connection.connect()
        except OSError as error:
            self._connection.close()
            state: State = "failing" if self._ever_answered else "absent"
            raise _Trouble(state, f"{self._connection.host}: {error}") from error
