"""What every store promises, asked of each: directory, memory, moto, SeaweedFS, LocalStack, plain and with retries."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from spotckpt.deadline import Deadline
from spotckpt.errors import AlreadyExists, LimitExceeded, NotFound, Replaced, Unavailable
from spotckpt.store.base import MIB, TEMPORARY, Store, Unfinished
from spotckpt.store.conditions import require_conditions
from spotckpt.store.generic import FsspecStore
from spotckpt.store.local import LocalStore
from spotckpt.store.retry import Retrying
from spotckpt.store.s3 import S3Store
from tests.store.clock import FakeClock
from tests.store.ranges import read_ranges
from tests.support.servers import LocalStack, MotoServer, S3Env, Seaweed

KINDS = ["local", "memory", "moto", "seaweed", "localstack"]


def _parameter(kind: str, suffix: str) -> Any:
    return pytest.param(f"{kind}{suffix}", marks=[pytest.mark.localstack] if kind == "localstack" else [])


@pytest.fixture(params=[_parameter(kind, suffix) for kind in KINDS for suffix in ("", "+retries")])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[], Store]]:
    """Makes stores at one and the same fresh root, as several processes would."""
    kind, _, wrapped = request.param.partition("+")
    stores: list[Store] = []
    plain = _maker(kind, request)

    def new() -> Store:
        stores.append(Retrying(plain()) if wrapped else plain())
        return stores[-1]

    yield new
    for store in stores:
        store.close()


def _maker(kind: str, request: pytest.FixtureRequest) -> Callable[[], Store]:
    if kind == "local":
        root = request.getfixturevalue("tmp_path") / "a" / "run"
        return lambda: LocalStore(str(root))
    if kind == "memory":
        name = f"/{uuid.uuid4().hex}/run"
        return lambda: FsspecStore(fsspec.filesystem("memory"), name, uri=f"memory:/{name}")
    env = request.getfixturevalue(f"{kind}_bucket")
    root = f"{env.uri}/{uuid.uuid4().hex}"
    return lambda: S3Store(root, environment=env.environment)


@pytest.fixture(scope="module")
def moto_bucket(moto_server: MotoServer) -> S3Env:
    return moto_server.new_env()


@pytest.fixture(scope="module")
def seaweed_bucket(seaweed_server: Seaweed) -> S3Env:
    return seaweed_server.new_env()


@pytest.fixture(scope="module")
def localstack_bucket(localstack_server: LocalStack) -> S3Env:
    return localstack_server.new_env()


@pytest.fixture
def store(make: Callable[[], Store]) -> Store:
    return make()


def test_a_new_root_is_empty(store):
    assert store.list("") == []
    assert store.list("snapshots/") == []
    assert not store.exists("run.json")
    with pytest.raises(NotFound, match=r"run\.json"):
        store.read("run.json", limit_bytes=10)
    with pytest.raises(NotFound, match=r"run\.json"):
        read_ranges(store, "run.json", [(0, 1)])
    store.delete(["run.json"])


def test_create_refuses_what_is_there(store):
    store.create("attempts/0001.json", b"first")
    with pytest.raises(AlreadyExists, match=r"attempts/0001\.json"):
        store.create("attempts/0001.json", b"second")
    assert store.read("attempts/0001.json", limit_bytes=100) == b"first"


def test_an_empty_object_is_an_object(store):
    store.create("empty", b"")
    assert store.stat("empty").size_bytes == 0
    assert store.read("empty", limit_bytes=0) == b""
    assert not store.put_if_absent("empty", b"")
    assert store.put("empty-too", []).size_bytes == 0


def test_put_if_absent_tells_its_own_bytes_from_others(store):
    assert store.put_if_absent("key", b"mine-1")
    assert not store.put_if_absent("key", b"mine-1")
    for other in (b"mine-2", b"", b"mine", b"mine-1 and much more than lies there"):
        with pytest.raises(AlreadyExists, match="key"):
            store.put_if_absent("key", other)
    assert store.read("key", limit_bytes=100) == b"mine-1"


def test_of_eight_creators_exactly_one_wins(make):
    stores = [make() for _ in range(8)]
    on_network = isinstance(getattr(stores[0], "inner", stores[0]), S3Store)
    for turn in range(3 if on_network else 60):
        barrier = threading.Barrier(8)

        def claim(number: int, *, turn: int = turn, barrier: threading.Barrier = barrier) -> int | None:
            barrier.wait()
            try:
                stores[number].create(f"attempts/{turn:04d}.json", f"writer {number}".encode())
            except AlreadyExists:
                return None
            return number

        with ThreadPoolExecutor(8) as threads:
            winners = [number for number in threads.map(claim, range(8)) if number is not None]
        assert len(winners) == 1
        assert stores[0].read(f"attempts/{turn:04d}.json", limit_bytes=100) == f"writer {winners[0]}".encode()


def test_put_replaces_and_changes_the_etag(store):
    first = store.put("heartbeat", [b"one"])
    second = store.put("heartbeat", [b"two"])
    assert first.etag != second.etag
    assert store.stat("heartbeat") == second
    assert store.stat("heartbeat") == second, "the etag does not change by itself"
    assert store.read("heartbeat", limit_bytes=3) == b"two"


def test_put_joins_its_buffers_and_reports_what_is_confirmed(store):
    data = os.urandom(17 * MIB)
    told: list[int] = []
    stat = store.put(
        "pack", [data[:5], memoryview(data)[5 : 9 * MIB], bytearray(data[9 * MIB :])], progress=told.append
    )
    assert stat.size_bytes == len(data) == sum(told)
    assert read_ranges(store, "pack", [(0, len(data))]) == [data]


def test_a_put_given_up_is_invisible(store):
    class Enough(BaseException):
        pass

    def give_up(count: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        store.put("torn/pack", [bytes(20 * MIB)], progress=give_up)
    if not isinstance(getattr(store, "inner", store), FsspecStore):  # memory: one step, told when it is over
        assert not store.exists("torn/pack")
        assert store.list("") == []


def test_read_has_a_limit(store):
    store.put("big", [bytes(1000)])
    assert len(store.read("big", limit_bytes=1000)) == 1000
    with pytest.raises(LimitExceeded, match=r"big.*1000 bytes"):
        store.read("big", limit_bytes=999)


def test_what_is_sent_is_shown_in_order(store):
    data = os.urandom(17 * MIB)
    shown = bytearray()

    def reading(offset: int, block: memoryview) -> None:
        assert offset == len(shown)
        shown.extend(block)

    store.put("pack", [data[:5], memoryview(data)[5 : 9 * MIB], data[9 * MIB :]], reading=reading)
    assert shown == data
    shown.clear()
    store.put("small", [b"one", b"two"], reading=reading)
    assert shown == b"onetwo"


def test_a_reader_that_raises_ends_the_put(store):
    class Enough(BaseException):
        pass

    def reading(offset: int, block: memoryview) -> None:
        raise Enough

    for size_bytes in (10, 20 * MIB):
        with pytest.raises(Enough):
            store.put("torn/pack", [bytes(size_bytes)], reading=reading)
    assert store.list("") == []


def test_ranges_may_come_in_any_order_and_overlap(store):
    data = os.urandom(1 * MIB)
    store.put("pack", [data])
    told: list[int] = []
    there: list[int] = []
    ranges = [(1000, 24), (0, 0), (0, 1), (MIB - 1, 1), (5, 300_000), (0, MIB)]
    found = read_ranges(store, "pack", ranges, progress=told.append, arrived=there.append)
    assert found == [data[offset : offset + length] for offset, length in ranges]
    assert sum(told) == sum(length for _, length in ranges)
    assert sorted(there) == list(range(len(ranges)))


def test_a_span_fills_its_buffers_one_after_the_other(store):
    data = os.urandom(33 * MIB + 5000)
    etag = store.put("pack", [data]).etag
    buffers = [bytearray(size) for size in (0, 1, 17 * MIB, 0, 16 * MIB - 7, 3, *[1] * 1500)]
    size_bytes = sum(map(len, buffers))
    tail = bytearray(len(data) - size_bytes)
    there: dict[int, bool] = {}

    def arrived(index: int) -> None:
        assert index not in there
        there[index] = b"".join(buffers) == data[:size_bytes] if index == 0 else bytes(tail) == data[size_bytes:]

    spans = [(0, [memoryview(buffer) for buffer in buffers]), (size_bytes, [memoryview(tail)])]
    store.read_into("pack", spans, arrived=arrived, etag=etag, width=2)
    assert there == {0: True, 1: True}


def test_another_version_than_wanted_is_told(store):
    etag = store.put("pack", [b"the first"]).etag
    store.put("pack", [b"the second"])
    with pytest.raises(Replaced, match="pack"):
        read_ranges(store, "pack", [(0, 5)], etag=etag)


def test_arrived_may_give_the_reading_up(store):
    class Enough(BaseException):
        pass

    def arrived(index: int) -> None:
        raise Enough

    store.put("pack", [b"0123456789"])
    with pytest.raises(Enough):
        read_ranges(store, "pack", [(0, 5), (5, 5)], arrived=arrived)


def test_a_range_past_the_end_is_an_error(store):
    store.put("pack", [b"0123456789"])
    store.clock = clock = FakeClock()
    with pytest.raises(Unavailable, match="pack"):
        read_ranges(store, "pack", [(0, 5), (8, 4)], deadline=Deadline.after(2.0, clock))


def test_many_small_spans_do_not_cost_a_look_each():
    class Counted(MemoryFileSystem):
        looks = 0

        def info(self, path: str, **options: Any) -> Any:
            type(self).looks += 1
            return super().info(path, **options)

    store = FsspecStore(Counted(skip_instance_cache=True), f"/{uuid.uuid4().hex}", uri="memory://run")
    data = os.urandom(1000)
    store.put("pack", [data])
    Counted.looks = 0
    there: list[int] = []
    assert read_ranges(store, "pack", [(at, 1) for at in range(1000)], arrived=there.append) == [
        bytes([b]) for b in data
    ]
    assert there == list(range(1000))
    assert Counted.looks == 2, "before and after"


def test_list_finds_exactly_the_prefix(store):
    for key in ("snapshots/a.json", "snapshots/b.json", "snapshots2/c.json", "run.json", "packs/x/rank-0.json"):
        store.put(key, [key.encode()])
    assert sorted(stat.key for stat in store.list("snapshots/")) == ["snapshots/a.json", "snapshots/b.json"]
    assert [stat.key for stat in store.list("snapshots/b")] == ["snapshots/b.json"]
    assert [stat.key for stat in store.list("packs/")] == ["packs/x/rank-0.json"]
    everything = store.list("")
    assert len(everything) == len({stat.key for stat in everything}) == 5
    assert {stat.key: stat.size_bytes for stat in everything}["run.json"] == len("run.json")
    assert {stat.key: stat.etag for stat in everything}["run.json"] == store.stat("run.json").etag


def test_delete_is_idempotent(store):
    for key in ("a/1", "a/2", "b"):
        store.put(key, [b"x"])
    store.delete(["a/1", "never/was", "b"])
    store.delete(iter(["a/1"]))
    store.delete([])
    assert [stat.key for stat in store.list("")] == ["a/2"]


def test_a_directory_is_no_object(store):
    store.put("packs/one/part.json", [b"{}"])
    assert not store.exists("packs/one")
    assert not store.exists("packs/one/part.json/below")


def test_a_passed_deadline_ends_every_verb(store):
    store.put("key", [b"data"])
    late = Deadline.after(0.0)
    verbs: list[Callable[[], object]] = [
        lambda: store.create("new", b"", deadline=late),
        lambda: store.put("new", [b"x"], deadline=late),
        lambda: store.read("key", limit_bytes=10, deadline=late),
        lambda: read_ranges(store, "key", [(0, 1)], deadline=late),
        lambda: store.list("", deadline=late),
        lambda: store.stat("key", deadline=late),
        lambda: store.delete(["key"], deadline=late),
    ]
    for verb in verbs:
        with pytest.raises(Unavailable, match="deadline has passed"):
            verb()
    assert [stat.key for stat in store.list("")] == ["key"]


def test_conditions_are_honoured_and_asking_leaves_nothing(store):
    store.create("run.json", b"the run")
    require_conditions(store, "run.json", b"the run")
    assert [stat.key for stat in store.list("")] == ["run.json"]


@pytest.mark.fault(71)
def test_keys_that_lead_elsewhere_are_refused(store):
    for key in ("../outside", "a/../../b", "/etc/passwd", "nul\0", "", "a//b", "a/", "./a", "back\\slash", "a/.tmp-1"):
        for verb in _verbs(store, key):
            with pytest.raises(ValueError, match="is no key"):
                verb()
    assert store.list("") == []


def _verbs(store: Store, key: str) -> list[Callable[[], object]]:
    listing = [lambda: store.list(key)] if key not in ("", "a/") else []
    return [
        *listing,
        lambda: store.create(key, b""),
        lambda: store.put_if_absent(key, b""),
        lambda: store.put(key, [b""]),
        lambda: store.read(key, limit_bytes=1),
        lambda: read_ranges(store, key, [(0, 1)]),
        lambda: store.stat(key),
        lambda: store.exists(key),
        lambda: store.delete([key]),
    ]


def test_the_store_tells_when_an_object_was_written_and_what_time_it_is(store):
    before = store.time()
    written = store.put("heartbeat", [b"one"])
    (listed,) = store.list("")
    assert listed.modified - 1 <= written.modified <= listed.modified + 1, "a HEAD tells whole seconds"
    if before:
        assert before - 2 <= written.modified <= store.time() + 2


def test_what_was_begun_and_not_finished_is_found_and_discarded(store):
    class Stop(BaseException):
        pass

    begun: list[str] = []

    def look(count: int) -> None:
        begun[:] = [write.key for write in store.unfinished() if write.began <= store.time() + 2]
        raise Stop

    with pytest.raises(Stop):
        store.put("packs/pack", [bytes(20 * MIB)], progress=look)
    inner = getattr(store, "inner", store)
    if not isinstance(inner, FsspecStore):
        assert begun == ["packs/pack"]
    assert store.unfinished() == [], "what raised gave it up"
    write = _leave_unfinished(inner)
    if write is not None:
        assert [one.key for one in store.unfinished()] == ["packs/pack"]
        for _ in range(2):
            store.discard(store.unfinished()[0] if store.unfinished() else write)
        assert store.unfinished() == []
        store.put("packs/pack", [b"x"])
        store.discard(write)
        assert [one.key for one in store.list("")] == ["packs/pack"]


def _leave_unfinished(store: Store) -> Unfinished | None:
    """As a killed writer would."""
    if isinstance(store, LocalStore):
        path = store.root / "packs" / f"{TEMPORARY}17-{'0a' * 8}-pack"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    elif isinstance(store, S3Store):
        place = store._place("packs/pack")
        store._client.request("create_multipart_upload", store._call("put", "packs/pack", store.until(None)), **place)
    else:
        return None
    (write,) = store.unfinished()
    return write
