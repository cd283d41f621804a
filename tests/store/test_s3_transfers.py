"""Large objects on their way to S3 and back, and what can happen to them there."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from spotckpt.deadline import Deadline
from spotckpt.errors import NoCredentials, OutcomeUnknown, StoreError, Unavailable
from spotckpt.store.base import MIB, Store
from spotckpt.store.connection import SILENCE_TIMEOUT_S
from spotckpt.store.multipart import MOST_PARTS, planned_part_bytes
from spotckpt.store.open import open_store
from spotckpt.store.s3 import S3Store
from tests.store.ranges import read_ranges
from tests.support.proxy import (
    Action,
    Proxy,
    Seen,
    answer,
    answer_instead,
    cut_reply,
    cut_request,
    dribble,
    drop_reply,
    reset,
    stall_reply,
    stall_request,
    then,
)
from tests.support.servers import Reply, Request, S3Env, ScriptedServer, wait_until
from tests.support.tls import authority_and_context

LARGE = 40 * MIB


class GivenUp(BaseException):
    pass


def error_body(code: str) -> bytes:
    return f"<Error><Code>{code}</Code></Error>".encode()


def connected(env: S3Env, **environment: str) -> Store:
    """A store that has its client: to make one can take longer than the deadline of a test."""
    store = open_store(env.uri, environment={**env.environment, **environment})
    assert not store.exists("nothing")
    return store


def assert_in_time(deadline: Deadline) -> None:
    """It was the deadline that ended it, not the limit on silence, which comes twenty seconds after the last byte."""
    assert deadline.now() < deadline.at + SILENCE_TIMEOUT_S / 2


def parts_of(proxy: Proxy) -> list[Seen]:
    return [seen for seen in proxy.seen if seen.method == "PUT" and "partNumber" in seen.path]


@pytest.mark.fault(29)
@pytest.mark.parametrize("size_bytes", [MIB, LARGE], ids=["one request", "parts"])
def test_silence_in_the_middle_of_a_body_ends_at_the_deadline(size_bytes, s3_env):
    with Proxy(s3_env.url) as proxy:
        store = connected(s3_env.behind(proxy.url))
        proxy.on("PUT", "pack", stall_request(100_000), times=float("inf"))
        deadline = Deadline.after(1.5)
        with pytest.raises(OutcomeUnknown, match=r"run/pack.*no answer"):
            store.put("pack", [bytes(size_bytes)], deadline=deadline)
        assert_in_time(deadline)
    wait_until(lambda: s3_env.uploads() == [], what="the abort")
    assert s3_env.keys() == []


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("verb", "action"),
    [
        *(
            (verb, action)
            for verb in ("read", "list", "stat")
            for action in (stall_reply(), stall_reply(20), dribble())
        ),
        *((verb, stall_reply(100_000)) for verb in ("read", "read_into")),
    ],
    ids=str,
)
def test_silence_in_the_middle_of_an_answer_ends_at_the_deadline(verb, action, s3_env):
    store = open_store(s3_env.uri)
    etag = store.put("pack", [bytes(MIB)]).etag
    with Proxy(s3_env.url) as proxy:
        behind = connected(s3_env.behind(proxy.url))
        proxy.on("*", "", action, times=float("inf"))
        deadline = Deadline.after(1.2)
        with pytest.raises(Unavailable, match=r"run/(pack)?.*no answer"):
            {
                "read": lambda: behind.read("pack", limit_bytes=MIB, deadline=deadline),
                "read_into": lambda: read_ranges(behind, "pack", [(0, MIB)], deadline=deadline, etag=etag),
                "list": lambda: behind.list("", deadline=deadline),
                "stat": lambda: behind.stat("pack", deadline=deadline),
            }[verb]()
        assert_in_time(deadline)


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("POST", "uploads", reset()),
        ("POST", "uploads", drop_reply()),
        ("PUT", "partNumber=1", reset()),
        ("PUT", "partNumber=2", cut_request(0)),
        ("PUT", "partNumber=2", cut_request(5 * MIB)),
        ("PUT", "partNumber=3", drop_reply()),
        ("POST", "uploadId", reset()),
        ("POST", "uploadId", cut_request(10)),
        ("POST", "uploadId", cut_reply(10)),
        ("HEAD", "pack", reset()),
        ("HEAD", "pack", cut_reply(10)),
        ("GET", "pack", reset()),
        ("GET", "pack", cut_reply(10)),
        ("GET", "pack", cut_reply(3 * MIB)),
    ],
    ids=str,
)
def test_a_connection_reset_anywhere_in_a_transfer_is_mended(method, path, action, s3_env):
    data = os.urandom(LARGE)
    with Proxy(s3_env.url) as proxy:
        proxy.on(method, path, action)
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        stat = store.put("pack", [data])
        assert read_ranges(store, "pack", [(0, len(data))], etag=stat.etag) == [data]
    assert s3_env.uploads() == [], "also the one whose name nobody heard"


@pytest.mark.fault(33)
def test_a_request_that_came_too_slowly_is_sent_again(s3_env):
    with Proxy(s3_env.url) as proxy:
        for path in ("beat", "partNumber=2"):
            proxy.on("PUT", path, answer(400, error_body("RequestTimeout")))
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        assert store.put("beat", [b"x"]).size_bytes == 1
        assert store.put("pack", [bytes(LARGE)]).size_bytes == LARGE
        assert len(parts_of(proxy)) == 4


@pytest.mark.fault(36)
def test_an_upload_that_is_gone_although_it_was_completed_is_looked_up(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("POST", "uploadId", answer_instead(404, error_body("NoSuchUpload")))
        store = S3Store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        assert store.put("pack", [bytes(LARGE)]).size_bytes == LARGE
        assert len(parts_of(proxy)) == 3


@pytest.mark.fault(36)
@pytest.mark.fault(37)
@pytest.mark.parametrize("status, code", [(404, "NoSuchUpload"), (409, "ConditionalRequestConflict")])
def test_an_upload_that_cannot_be_completed_is_made_anew(status, code, s3_env):
    old, new = bytes(LARGE), os.urandom(LARGE)
    with Proxy(s3_env.url) as proxy:
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        store.put("pack", [old])
        before = len(parts_of(proxy))
        proxy.on("POST", "uploadId", answer(status, error_body(code)))
        store.put("pack", [new])
        assert len(parts_of(proxy)) - before == 6
        assert read_ranges(store, "pack", [(0, LARGE)]) == [new]
    assert s3_env.uploads() == []


@pytest.mark.fault(43)
@pytest.mark.parametrize("said", [90, 110])
@pytest.mark.parametrize("verb", ["read", "read_into"])
def test_a_length_that_lies_is_found_out(verb, said):
    def script(request: Request) -> Reply:
        return Reply(206, bytes(100), {"Content-Length": str(said), "Connection": "close"})

    with ScriptedServer(script) as server:
        environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL_S3": server.url}
        store = S3Store("s3://bucket/run", environment=environment)
        if verb == "read_into":
            with pytest.raises(Unavailable, match=r"run/pack.* of 100 bytes"):
                read_ranges(store, "pack", [(0, 100)], etag="e", deadline=Deadline.after(2.0))
        elif said > 100:
            with pytest.raises(Unavailable, match=r"run/pack.*10 bytes too early"):
                store.read("pack", limit_bytes=200)


@pytest.mark.fault(43)
def test_a_connection_closed_in_good_order_in_the_middle_is_no_end():
    with ScriptedServer(lambda _: Reply(206, bytes(100), {"Content-Length": "110", "Connection": "close"})) as server:
        environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL_S3": server.url}
        store = S3Store("s3://bucket/run", environment=environment)
        with pytest.raises(Unavailable, match=r"run/pack.*100 of 110 bytes"):
            read_ranges(store, "pack", [(0, 110)], etag="e", deadline=Deadline.after(5.0))


@pytest.mark.fault(47)
def test_parts_are_planned_from_the_size():
    for size_bytes in (16 * MIB + 1, 2**30, 2**37 + 1, 10**12, 5 * 10**12, 50 * 10**12):
        part_bytes = planned_part_bytes(size_bytes)
        assert 5 * MIB <= part_bytes <= 5 * 2**30
        assert -(-size_bytes // part_bytes) <= MOST_PARTS


@pytest.mark.fault(47)
def test_every_part_but_the_last_is_as_planned(s3_env):
    size_bytes = 2 * planned_part_bytes(LARGE) + 1
    with Proxy(s3_env.url) as proxy:
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        store.put("pack", [bytes(7), bytes(size_bytes - 7)])
        sent = {parse_qs(urlsplit(seen.path).query)["partNumber"][0]: seen.body_bytes for seen in parts_of(proxy)}
    assert sent == {"1": planned_part_bytes(LARGE), "2": planned_part_bytes(LARGE), "3": 1}


@pytest.mark.fault(49)
def test_many_puts_that_are_given_up_leave_no_upload(s3_env):
    store = open_store(s3_env.uri)
    data = [memoryview(bytes(LARGE))]
    for number in range(200):
        last = (number % 20 == 19) * (LARGE - MIB)

        def give_up(offset: int, block: memoryview, last: int = last) -> None:
            if offset >= last:
                raise GivenUp

        with pytest.raises(GivenUp):
            store.put(f"packs/{number}", data, reading=give_up)
    assert s3_env.uploads() == []
    assert s3_env.keys() == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("spotckpt-transfer")]


def test_giving_up_does_not_wait_for_what_is_on_its_way(s3_env):
    gave_up: list[float] = []

    def give_up(_: int) -> None:
        gave_up.append(time.monotonic())
        raise GivenUp

    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "partNumber=[23]", stall_request(1000), times=float("inf"))
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        with pytest.raises(GivenUp):
            store.put("pack", [bytes(LARGE)], progress=give_up, deadline=Deadline.after(120.0))
        assert time.monotonic() - gave_up[0] < SILENCE_TIMEOUT_S - 2
    assert s3_env.uploads() == []


@pytest.mark.fault(56)
def test_credentials_that_expire_in_an_upload_are_renewed_and_it_goes_on(s3_env, tmp_path):
    file = tmp_path / "credentials"

    def give(key: str) -> None:
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n")

    give("AKFIRST")
    with Proxy(s3_env.url) as proxy:
        expired = then(answer(400, error_body("ExpiredToken")), lambda: give("AKSECOND"))
        proxy.on("PUT", "partNumber=2", expired)
        environment = {"AWS_ENDPOINT_URL_S3": proxy.url, "AWS_SHARED_CREDENTIALS_FILE": str(file)}
        assert open_store(s3_env.uri, environment=environment).put("pack", [bytes(LARGE)]).size_bytes == LARGE
        assert len([seen for seen in proxy.seen if seen.method == "POST" and seen.path.endswith("?uploads")]) == 1
        tries = [seen for seen in parts_of(proxy) if "partNumber=2" in seen.path]
        assert ["AKFIRST" in seen.headers["authorization"] for seen in tries] == [True, False]
        assert "AKSECOND" in tries[1].headers["authorization"]


@pytest.mark.fault(56)
def test_credentials_that_expired_and_stay_so_are_told_and_the_upload_is_aborted(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "partNumber=2", answer(400, error_body("ExpiredToken")), times=float("inf"))
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        with pytest.raises(NoCredentials, match=r"run/pack.*ExpiredToken.*renew"):
            store.put("pack", [bytes(LARGE)])
    assert s3_env.uploads() == []


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Path, Callable[[str], Proxy]]:
    trusted, context = authority_and_context(tmp_path)
    return trusted, lambda url: Proxy(url, tls=context)


def test_over_tls_the_bytes_go_as_they_are(tls, seaweed_env):
    trusted, proxy_to = tls
    data = os.urandom(LARGE + 5)
    with proxy_to(seaweed_env.url) as proxy:
        environment = {**seaweed_env.behind(proxy.url).environment, "AWS_CA_BUNDLE": str(trusted)}
        store = open_store(seaweed_env.uri, environment=environment)
        store.create("small", b"one")
        store.put("pack", [data[:10], data[10:]])
        assert store.read("small", limit_bytes=9) == b"one"
        assert read_ranges(store, "pack", [(0, len(data)), (7, 9)]) == [data, data[7:16]]
        sent = [seen for seen in proxy.seen if seen.method == "PUT"]
    assert len(sent) == 4
    for seen in sent:
        assert seen.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert re.fullmatch(r"[A-Za-z0-9+/]{6}==", seen.headers["x-amz-checksum-crc32"])
        assert "content-encoding" not in seen.headers and "x-amz-trailer" not in seen.headers


@pytest.mark.fault(29)
@pytest.mark.parametrize("action", [stall_request(300_000), stall_reply(20)], ids=str)
def test_silence_over_tls_ends_at_the_deadline(action: Action, tls, s3_env):
    trusted, proxy_to = tls
    with proxy_to(s3_env.url) as proxy:
        store = connected(s3_env.behind(proxy.url), AWS_CA_BUNDLE=str(trusted))
        proxy.on("PUT", "", action, times=float("inf"))
        deadline = Deadline.after(1.5)
        with pytest.raises(OutcomeUnknown, match="no answer"):
            store.put("pack", [bytes(15 * MIB)], deadline=deadline)
        assert_in_time(deadline)


@pytest.mark.fault(51)
def test_a_certificate_that_is_not_trusted_is_told_at_once(tls, s3_env):
    _, proxy_to = tls
    with proxy_to(s3_env.url) as proxy:
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        with pytest.raises(StoreError, match=r"run/run\.json.*certificate.*AWS_CA_BUNDLE") as caught:
            store.create("run.json", b"x")
        assert type(caught.value) is StoreError
        assert proxy.seen == []


def stored(env: S3Env) -> bytes:
    return env.client.get_object(Bucket=env.bucket, Key="run/pack")["Body"].read()


def test_parts_that_are_there_do_not_go_again(s3_env):
    """An upload that is given up at its very end costs one request more."""
    data = [os.urandom(LARGE)]
    with Proxy(s3_env.url) as proxy:
        store = S3Store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        proxy.on("POST", "uploadId", answer(503, error_body("SlowDown")))
        with pytest.raises(StoreError):
            store.put_resumed("pack", data)
        assert s3_env.uploads() == ["run/pack"] and s3_env.keys() == []
        first, told = len(parts_of(proxy)), []
        store.put_resumed("pack", data, progress=told.append)
        assert len(parts_of(proxy)) == first and sum(told) == LARGE
    assert stored(s3_env) == data[0]
    assert s3_env.uploads() == []


@pytest.mark.parametrize("wrong", ["bytes", "length"])
def test_parts_of_other_bytes_go_again(wrong, s3_env):
    """What another process left under the same key is known by its checksums, not by its place."""
    data, other = os.urandom(LARGE), os.urandom(LARGE if wrong == "bytes" else LARGE + MIB)
    with Proxy(s3_env.url) as proxy:
        store = S3Store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        proxy.on("PUT", "partNumber=3", reset(), times=float("inf"))
        with pytest.raises(StoreError):
            store.put_resumed("pack", [other])
        assert s3_env.uploads() == ["run/pack"]
        proxy.clear()
        store.put_resumed("pack", [data])
    assert stored(s3_env) == data
    assert s3_env.uploads() == []


def test_who_may_not_list_parts_begins_anew(s3_env):
    data = os.urandom(LARGE)
    with Proxy(s3_env.url) as proxy:
        store = S3Store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        proxy.on("PUT", "partNumber=3", reset(), times=float("inf"))
        with pytest.raises(StoreError):
            store.put_resumed("pack", [data])
        proxy.clear()
        proxy.on("GET", "uploadId", answer(403, error_body("AccessDenied")), times=float("inf"))
        store.put_resumed("pack", [data])
    assert stored(s3_env) == data
    assert s3_env.uploads() == []
