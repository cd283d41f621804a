"""The language of the agent's socket: one JSON object per line, at most `MAX_MESSAGE_BYTES` long.

A request is `{"op": NAME, "call": N, ...}`; its reply is `{"reply": N, "ok": true, ...}` or
`{"reply": N, "error": CLASS, "message": ..., "hint": ...}`. An event is `{"event": NAME, ...}`; one that belongs to a
request still being worked on carries its number as `call`.

| request | fields | reply |
|---|---|---|
| `hello` | version, pid, start_time, boot_id | agent_pid, version, notice (as the event, or null) |
| `open` | uri, selector, settings {stale_after_s, takeover, …}, environment, arguments | attempt, run_id, highest |
| `base` | uri, snapshot or null, selector, consumed, skipped | pace, a file for `PaceWriter` |
| `attach` | uri, attempt, environment | attempt, last_committed, pace |
| `prepare` | uri, size_bytes | slots [{path, data_path}], allocated now |
| `slot` | uri, size_bytes, step, wait_s (0) | path, data_path, generation, snapshot, size_bytes; or busy, wait |
| `where` | uri, snapshot | path, data_path of a slot that holds it; or nothing |
| `abort`, `sealed` | uri, generation | |
| `drain`, `close` | uri, deadline_s or null | committed (id or null), acknowledged; and failure if not |
| `status` | | agent {...}, notices [...], runs [...] |
| `notify` | action, in_s or null, kind; or clear (true) | |

| event | fields | sent |
|---|---|---|
| `waiting` | call, message | while `open` waits |
| `progress` | call, uri, id, sent_bytes, total_bytes | while `drain` and `close` upload |
| `notice` | kind, action, final, seconds_left or null, id, plan, why | when it comes |
| `plan` | uri, kind, action, seconds_left or null, plan, why | when that changes, after a final notice |
| `committed` | uri, id, acknowledged, history [[rows, payload_bytes]] | |
| `discontinued` | uri, id | when a snapshot is dropped because the next one must bring all metrics |
| `superseded` | uri, id or null, message | once |
| `dropped` | uri, id, reason | when a snapshot that was asked for gives way to a newer one |
| `warning` | uri, message | when slots are fewer, or elsewhere, than they should be, or uploads too slow |
| `error` | uri, error, message, hint | when an upload fails; it is tried again |

`acknowledged` in the reply to `drain` and `close` says that nothing sealed is left uncommitted; otherwise `failure` is
{error, message, hint}, to be read with `to_error`. `plan` is `continue`, `snapshot` (stage one as soon as you can and
go on), `last` (stage one as soon as you can, then close) or `stop` (no time for one: close now). `busy` with `wait`
says that there is one slot only: ask again with `wait_s`, until it is uploaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from spotckpt import errors

Message = dict[str, Any]

VERSION = 1
MAX_MESSAGE_BYTES = 1 << 20

OPERATIONS = (
    "hello",
    "open",
    "base",
    "attach",
    "prepare",
    "slot",
    "where",
    "abort",
    "sealed",
    "drain",
    "close",
    "status",
    "notify",
)
"""Every request that an agent answers."""


class MalformedMessage(errors.AgentError):
    """A line that is no message; `fatal` when the place in the stream is lost with it."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message, hint="trainer and agent must be of the same version of spotckpt")
        self.fatal = fatal


def encode(message: Mapping[str, Any]) -> bytes:
    """One line.

    Raises:
        AgentError: it is over the cap.
    """
    line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(line) > MAX_MESSAGE_BYTES:
        raise errors.AgentError(
            f"message of {len(line)} bytes to the agent is over the limit of {MAX_MESSAGE_BYTES}",
            hint="pass fewer or shorter arguments",
        )
    return line


def read_message(stream: BinaryIO) -> Message | None:
    """The next message, or None at the end of the stream (a torn last line counts as the end).

    Raises:
        MalformedMessage: it is too long, not JSON, or not an object.
    """
    line = stream.readline(MAX_MESSAGE_BYTES + 1)
    if not line.endswith(b"\n"):
        if len(line) > MAX_MESSAGE_BYTES:
            raise MalformedMessage(f"message over {MAX_MESSAGE_BYTES} bytes", fatal=True)
        return None
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"message is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise MalformedMessage(f"message is {type(message).__name__}, not an object")
    return message


def error_fields(error: BaseException) -> Message:
    """An error as it travels: class, message, hint, and a store error's operation, key and cause."""
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    fields = {
        "error": next(known, type(error).__name__),
        "message": getattr(error, "message", "") or f"{type(error).__name__}: {error}",
        "hint": getattr(error, "hint", ""),
    }
    if isinstance(error, errors.StoreError):
        fields |= {"operation": error.operation, "key": error.key, "cause": error.cause}
    return fields


def to_error(fields: Mapping[str, Any]) -> errors.SpotckptError | errors.StopTraining:
    """The error that `error_fields` described, of the same class; a class not known here becomes an AgentError."""
    message, hint = str(fields.get("message", "")), str(fields.get("hint") or "")
    known = getattr(errors, str(fields.get("error")), None)
    if isinstance(known, type) and issubclass(known, errors.StopTraining):
        return known(message)
    if isinstance(known, type) and issubclass(known, errors.StoreError) and "operation" in fields:
        return known(str(fields["operation"]), str(fields["key"]), str(fields["cause"]), hint=hint)
    if isinstance(known, type) and issubclass(known, errors.SpotckptError) and not issubclass(known, errors.StoreError):
        return known(message, hint=hint)
    return errors.AgentError(message or f"the agent failed: {dict(fields)}", hint=hint)
