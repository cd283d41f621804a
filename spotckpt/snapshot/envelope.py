"""Every JSON object in the bucket carries the digest of its own body.

    {"blake3":"<64 hex digits>","body":<the body's bytes>}

The digest covers exactly the bytes between `"body":` and the last `}`, so a reader checks it before it parses anything.
The body is an object with `"format"`; a larger number than ours was written by a newer version and is never guessed at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from blake3 import blake3

from spotckpt.errors import Corrupt, EncodeError, FutureFormat, LimitExceeded

FORMAT = 1
_HEAD = re.compile(rb'\{"blake3":"([0-9a-f]{64})","body":')
_HEAD_BYTES = len('{"blake3":"') + 64 + len('","body":')


def digest(data: bytes | bytearray | memoryview) -> str:
    """BLAKE3 of the bytes, 64 hex digits. Megabytes are hashed on all cores."""
    return blake3(data, max_threads=blake3.AUTO if len(data) > 1 << 20 else 1).hexdigest()


def wrap(body: Mapping[str, Any], *, limit_bytes: int = 1 << 62) -> bytes:
    """The bytes of an object with this body, to which `"format"` is added.

    Raises:
        EncodeError: the body is not JSON: NaN, an infinity, or a type that JSON lacks.
        LimitExceeded: it would be longer than a reader accepts.
    """
    try:
        # a cycle ends in RecursionError too, and looking for one costs a third of the time
        text = json.dumps({"format": FORMAT, **body}, allow_nan=False, check_circular=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError(f"a record cannot be written as JSON: {error}", hint="use plain finite values") from error
    data = text.encode("ascii")
    if len(data) + _HEAD_BYTES + 1 > limit_bytes:
        raise LimitExceeded(f"a record would have {len(data)} bytes, more than {limit_bytes}", hint="store less in it")
    return b'{"blake3":"%s","body":%s}' % (digest(data).encode(), data)


def unwrap(data: bytes, *, key: str, limit_bytes: int) -> dict[str, Any]:
    """The body of an object, without its `"format"`.

    Args:
        data: the whole object.
        key: what the errors name.
        limit_bytes: the most that such an object may have.

    Raises:
        Corrupt: the envelope, the digest or the JSON is wrong (duplicate names and NaN are, too).
        FutureFormat: a newer version wrote it; told even if all else about the body is unknown.
        LimitExceeded: it is longer than the limit, or nested beyond what can be read.
    """
    if len(data) > limit_bytes:
        raise LimitExceeded(f"{key} has {len(data)} bytes, more than {limit_bytes}", hint="it was not written by us")
    match = _HEAD.match(data)
    if match is None or not data.endswith(b"}"):
        raise Corrupt(f"{key} is not one of our records", hint="it was cut short, or something else was written there")
    body = data[_HEAD_BYTES:-1]
    if digest(body) != match[1].decode():
        raise Corrupt(f"{key} does not match its digest", hint="the bytes changed after they were written")
    return _checked(_parse(body, key), key)


def _parse(body: bytes, key: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Corrupt(f"{key} names a field twice", hint="it was not written by us")
        return found

    def no_constant(name: str) -> NoReturn:
        raise Corrupt(f"{key} contains {name}, which is not JSON", hint="it was not written by us")

    try:
        return json.loads(body, object_pairs_hook=once, parse_constant=no_constant)
    except RecursionError as error:
        raise LimitExceeded(f"{key} is nested too deeply", hint="it was not written by us") from error
    except ValueError as error:
        raise Corrupt(f"{key} is not JSON: {error}", hint="it was not written by us") from error


def _checked(body: Any, key: str) -> dict[str, Any]:
    number = body.pop("format", None) if type(body) is dict else None
    if type(number) is not int or number < 1:
        raise Corrupt(f"{key} has no format number", hint="it was not written by us")
    if number > FORMAT:
        raise FutureFormat(
            f"{key} has format {number}, this version reads up to {FORMAT}", hint="upgrade spotckpt to read it"
        )
    assert type(body) is dict
    return body
