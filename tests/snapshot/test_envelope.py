from __future__ import annotations

import json

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from spotckpt.errors import Corrupt, EncodeError, FutureFormat, LimitExceeded
from spotckpt.snapshot.envelope import unwrap, wrap
from tests.snapshot.bucket import raises_naming

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def sealed(body: bytes) -> bytes:
    return b'{"blake3":"%s","body":%s}' % (blake3(body).hexdigest().encode(), body)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name != "format"), plain, max_size=3))
def test_round_trip_and_the_whole_is_json(body: dict) -> None:
    data = wrap(body)
    assert unwrap(data, key="k", limit_bytes=len(data)) == body
    assert json.loads(data)["body"] == {"format": 1, **body}


def test_the_exact_bytes() -> None:
    body = b'{"format":1,"a":[1,2.0,"\\u00e9"]}'
    assert wrap({"a": [1, 2.0, "é"]}) == sealed(body)


def test_a_future_format_is_told_whatever_else_it_says() -> None:
    with raises_naming(FutureFormat, "some/key", "format 7", "upgrade"):
        unwrap(sealed(b'{"format":7,"odd":{}}'), key="some/key", limit_bytes=999)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"\x80\x04]\x94.",
        sealed(b""),
        sealed(b"[]"),
        sealed(b"{}"),
        sealed(b'{"format":0}'),
        sealed(b'{"format":true}'),
        sealed(b'{"format":"1"}'),
        sealed(b'{"format":1.0}'),
        sealed(b'{"format":1,"a":NaN}'),
        sealed(b'{"format":1,"a":-Infinity}'),
        sealed(b'{"format":1,"a":1,"a":2}'),
        sealed(b'{"format":1,"a":{"b":1,"b":1}}'),
        sealed(b'{"format":1} {}'),
        sealed(b'{"format":1,"a":"\xff"}'),
        sealed(b'{"format":1,"a":' + b"9" * 5000 + b"}"),
        sealed(b'{"format":1}') + b" ",
        sealed(b'{"format":1}').replace(b'"body"', b'"Body"'),
    ],
    ids=lambda data: repr(data[-30:]),
)
def test_anything_else_is_corrupt_and_named(data: bytes) -> None:
    with raises_naming(Corrupt, "some/key"):
        unwrap(data, key="some/key", limit_bytes=1 << 20)


@pytest.mark.fault(70)
def test_deep_and_long_records_stop_at_the_limit() -> None:
    deep = b'{"format":1,"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with raises_naming(LimitExceeded, "some/key"):
        unwrap(sealed(deep), key="some/key", limit_bytes=1 << 20)
    with raises_naming(LimitExceeded, "some/key"):
        unwrap(b" " * 1001, key="some/key", limit_bytes=1000)


def test_what_is_not_json_is_refused_when_written() -> None:
    for value in (float("nan"), float("inf"), object(), {1, 2}):
        with pytest.raises(EncodeError):
            wrap({"a": value})
    with pytest.raises(LimitExceeded):
        wrap({"a": "x" * 100}, limit_bytes=100)
