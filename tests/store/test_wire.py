"""Connections that are kept, and what has no thread to be done in."""

from __future__ import annotations

import threading
from typing import NoReturn

import pytest

from spotckpt.deadline import Deadline
from spotckpt.errors import Unavailable
from spotckpt.snapshot.lazy import in_parallel
from spotckpt.store.connection import Limits
from spotckpt.store.s3 import S3Store
from spotckpt.store.wire import Outgoing, Pool
from tests.support.servers import Reply, Request, ScriptedServer


def test_who_speaks_to_two_servers_by_turns_keeps_a_connection_to_each():
    """As an agent does whose runs lie in two buckets: each bucket has a name of its own."""
    connections: dict[str, set[int]] = {"one": set(), "other": set()}

    def script(name: str, request: Request) -> Reply:
        connections[name].add(threading.get_ident())  # a connection has a thread of its own
        return Reply(200, b"here")

    pool, seen = Pool(None), []
    with (
        ScriptedServer(lambda request: script("one", request)) as one,
        ScriptedServer(lambda request: script("other", request)) as other,
    ):
        for url in (one.url, other.url) * 3:
            answer = pool.exchange(
                Outgoing("GET", url, {}), Limits(Deadline.after(60.0)), lambda response: seen.append(response.read())
            )
            assert answer.status == 200
        pool.close()
    assert [len(threads) for threads in connections.values()] == [1, 1]


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.fault(84)
def test_where_no_thread_is_to_be_had_a_request_may_go_well_later(no_threads):
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}
    store = S3Store("s3://bucket/threadless", environment=environment)
    with pytest.raises(Unavailable, match=r"threadless/run\.json: there is no thread to be had"):
        store.exists("run.json")


@pytest.mark.fault(84)
def test_where_no_thread_is_to_be_had_many_records_are_read_one_after_the_other(no_threads):
    assert in_parallel(lambda number: number * number, range(5)) == [0, 1, 4, 9, 16]


def test_what_is_read_in_parallel_comes_in_order_and_nothing_is_begun_after_an_error():
    assert in_parallel(str, range(100)) == [str(number) for number in range(100)]
    begun: list[int] = []

    def read(number: int) -> None:
        begun.append(number)
        raise ValueError(number)

    with pytest.raises(ValueError, match=r"\d"):
        in_parallel(read, range(1000))
    assert len(begun) < 1000
