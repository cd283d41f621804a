"""What it costs to choose among many snapshots: list requests and reads, counted; and what stale listings may hide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from spotckpt.address import Selector
from spotckpt.errors import NotFound
from spotckpt.snapshot.catalog import highest_attempt, read_catalog
from spotckpt.snapshot.choose import Choice, choose
from spotckpt.snapshot.fetch import evaluated_of, pick, read_manifest
from spotckpt.snapshot.keys import RUN_KEY, SnapshotId, base_key, claim_key, heartbeat_key, manifest_key, parse_key
from spotckpt.snapshot.lazy import READ_AHEAD, READS_AT_ONCE, Line, Records
from spotckpt.snapshot.manifest import Manifest, PartRef
from spotckpt.snapshot.records import Base, Claim, Heartbeat, Holder, RunRecord
from spotckpt.store.base import Stat, Store
from tests.snapshot.bucket import sid
from tests.store.test_s3_faults import s3_at
from tests.support.servers import Reply, Request, ScriptedServer

PAGE = 1000


class Bucket(Store):
    """Objects in memory, and a count of what was asked: verbs with the kind of the key, or the prefix."""

    uri = "memory://run"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.asked: Counter[str] = Counter()
        self.stale: set[str] = set()

    def list(self, prefix: str, **_: Any) -> list[Stat]:
        """Leaves the stale keys out of the first answer."""
        self.asked[f"list {prefix}"] += 1
        first = self.asked[f"list {prefix}"] == 1
        found = [key for key in self.objects if key.startswith(prefix) and not (first and key in self.stale)]
        return [Stat(key, 1, "e") for key in found]

    def read(self, key: str, **_: Any) -> bytes:
        found = parse_key(key)
        self.asked[f"read {found.kind if found else key}"] += 1
        if key not in self.objects:
            raise NotFound("read", key, "it is not there")
        return self.objects[key]

    def stat(self, key: str, **_: Any) -> Stat:
        self.asked["stat"] += 1
        if key not in self.objects:
            raise NotFound("stat", key, "it is not there")
        return Stat(key, 1, "e")

    def create(self, *_: Any, **__: Any) -> None:
        raise AssertionError("nothing is written here")

    put = read_into = delete = create


def manifest(one: SnapshotId) -> bytes:
    part = PartRef(f"packs/{one}/rank-00000.json", 1, "0" * 64)
    return Manifest(
        run_id="0" * 16,
        snapshot=one,
        parent=None,
        step=one.step,
        epoch=0,
        reason="periodic",
        created=0.0,
        committed=0.0,
        parts=(part,),
        packs=(),
        evaluated={"valid/top1": float(one.step)},
    ).to_bytes()


def run_of(attempts: int, each: int, *, released: bool = True) -> dict[str, bytes]:
    """A run whose attempts each committed `each` snapshots and continued the last of the one before."""
    objects = {RUN_KEY: RunRecord("0" * 16, 0.0).to_bytes()}
    last = None
    for number in range(1, attempts + 1):
        objects[claim_key(number)] = Claim(number, "n", 0.0, Holder(), "newest").to_bytes()
        objects[base_key(number)] = Base(number, None if last is None else str(last)).to_bytes()
        for sequence in range(each):
            last = sid(number, sequence, (number - 1) * each + sequence)
            objects[manifest_key(last)] = manifest(last)
        beat = Heartbeat(number, 1, 0.0, released, None if last is None else str(last))
        objects[heartbeat_key(number)] = beat.to_bytes()
    return objects


def claimed(objects: dict[str, bytes], number: int) -> dict[str, bytes]:
    return {**objects, claim_key(number): Claim(number, "n", 0.0, Holder(), "newest").to_bytes()}


def chosen(store: Store, before: int, selector: str = "newest") -> tuple[Choice, Any]:
    """Chooses as a start does, manifest included."""
    catalog = read_catalog(store, before=before)
    evaluated = evaluated_of(store, run_id=None, say=lambda text: None)
    choice = choose(catalog, before, Selector.parse(selector), evaluated=evaluated)
    return choice, pick(store, choice, lambda one: read_manifest(store, one), lambda text: None)


@pytest.fixture(scope="module")
def many() -> dict[str, bytes]:
    """10,000 snapshots of 1000 attempts; the caller's is the next one."""
    return claimed(run_of(1000, 10), 1001)


def reads(store: Bucket) -> dict[str, int]:
    return {what.removeprefix("read "): count for what, count in store.asked.items() if what.startswith("read ")}


def test_the_newest_of_ten_thousand_costs_two_listings_and_a_handful_of_reads(many: dict[str, bytes]) -> None:
    store = Bucket(many)
    choice, picked = chosen(store, 1001)
    assert picked[0] == sid(1000, 9, 9999) and choice.candidates[0] == picked[0]
    assert (store.asked["list snapshots/"], store.asked["list attempts/"], store.asked["stat"]) == (1, 1, 0)
    assert reads(store) == {"run": 1, "base": 1, "heartbeat": 1, "manifest": 1}


def test_on_s3_these_are_as_many_requests_as_there_are_pages(many: dict[str, bytes]) -> None:
    keys = sorted(many)

    def script(request: Request) -> Reply:
        path, query = unquote(urlsplit(request.path).path), parse_qs(urlsplit(request.path).query)
        if "list-type" not in query:
            key = path.removeprefix("/bucket/run/")
            return Reply(200, many[key]) if key in many else Reply(404)
        start = int(query.get("continuation-token", ["0"])[0])
        found = [key for key in keys if f"run/{key}".startswith(query["prefix"][0])]
        page = found[start : start + PAGE]
        items = "".join(f'<Contents><Key>run/{k}</Key><Size>1</Size><ETag>"e"</ETag></Contents>' for k in page)
        more = start + PAGE < len(found)
        token = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if more else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return Reply(200, f"<ListBucketResult>{truncated}{token}{items}</ListBucketResult>".encode())

    with ScriptedServer(script) as server:
        _, picked = chosen(s3_at(server.url), 1001)
        lists = [request for request in server.requests if "list-type" in request.path]
        others = len(server.requests) - len(lists)
    assert picked[0] == sid(1000, 9, 9999)
    attempts = sum(key.startswith("attempts/") for key in keys)
    assert len(lists) == 10_000 // PAGE + -(-attempts // PAGE)
    assert others == 4


def test_a_step_is_found_along_the_lineage_without_a_manifest_more(many: dict[str, bytes]) -> None:
    store = Bucket(many)
    _, picked = chosen(store, 1001, "step=9905")
    assert picked[0] == sid(991, 5, 9905)
    assert store.asked["read manifest"] == 1
    assert store.asked["read base"] <= 20, "no more than twice as many as lie between"


def test_a_corrupt_newest_costs_one_manifest_more(many: dict[str, bytes]) -> None:
    store = Bucket({**many, manifest_key(sid(1000, 9, 9999)): b"x"})
    _, picked = chosen(store, 1001)
    assert picked[0] == sid(1000, 8, 9998)
    assert reads(store) == {"run": 1, "base": 1, "heartbeat": 1, "manifest": 2}


def test_the_best_reads_the_manifests_of_the_lineage_only() -> None:
    objects = claimed(run_of(3, 10), 4)
    objects[base_key(3)] = Base(3, str(sid(1, 4, 4))).to_bytes()  # attempt 2 is a branch that was given up
    store = Bucket(objects)
    _, picked = chosen(store, 4, "best=valid/top1:min")
    assert picked[0] == sid(1, 0, 0)
    assert store.asked["read manifest"] == 10 + 5 + 1
    assert store.asked["read base"] == 2


def test_attempts_that_died_early_are_asked_what_they_wanted_and_no_others() -> None:
    objects = claimed(run_of(50, 1), 251)
    for number in range(51, 251):
        objects = claimed(objects, number)
    store = Bucket(objects)
    _, picked = chosen(store, 251)
    assert picked[0] == sid(50, 0, 49)
    assert store.asked["read claim"] == 200
    assert store.asked["read base"] <= 2 and store.asked["read heartbeat"] <= 2


def test_a_new_run_is_listed_twice_before_it_is_called_new() -> None:
    store = Bucket(claimed({}, 1))
    assert chosen(store, 1)[0].fresh
    assert (store.asked["list snapshots/"], store.asked["list attempts/"]) == (2, 1)


def test_who_shows_everything_gets_it_and_the_errors_too() -> None:
    objects = run_of(20, 2)
    objects[base_key(3)] = b"x"
    store = Bucket(objects)
    found = read_catalog(store, everything=True)
    assert len(found.claims) == len(found.heartbeats) == 20 and 3 not in found.bases
    assert list(found.problems) == [base_key(3)]
    asked = store.asked.total()
    assert found.claims.get(21) is None and store.asked.total() == asked


def test_the_highest_attempt_takes_one_listing(many: dict[str, bytes]) -> None:
    store = Bucket(many)
    assert highest_attempt(store) == 1001
    assert store.asked.total() == 1


# what a listing that is stale once may hide


def hidden(objects: dict[str, bytes], keys: Iterable[str]) -> Bucket:
    store = Bucket(objects)
    store.stale = set(keys)
    assert store.stale <= objects.keys()
    return store


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    "keys",
    [
        [manifest_key(sid(3, 1, 5))],
        [manifest_key(sid(3, 0, 4)), manifest_key(sid(3, 1, 5))],
        [manifest_key(sid(number, sequence, 2 * number - 2 + sequence)) for number in (2, 3) for sequence in (0, 1)],
        [key(3) for key in (claim_key, base_key, heartbeat_key)],
        [base_key(3)],
        [heartbeat_key(3)],
        [*(key(number) for key in (claim_key, base_key, heartbeat_key) for number in (2, 3)), claim_key(4)],
        [manifest_key(sid(3, 1, 5)), base_key(3), heartbeat_key(3)],
    ],
    ids=["newest", "attempt", "attempts", "records", "base", "heartbeat", "all records", "newest and its records"],
)
def test_what_was_acknowledged_is_found_behind_a_stale_listing(keys: list[str]) -> None:
    objects = claimed(run_of(3, 2), 4)
    choice, picked = chosen(hidden(objects, keys), 4)
    assert picked[0] == sid(3, 1, 5)
    assert choice.candidates == chosen(Bucket(objects), 4)[0].candidates


@pytest.mark.fault(46)
def test_the_lineage_is_followed_by_name_where_the_listing_lacks_a_base() -> None:
    choice, _ = chosen(hidden(claimed(run_of(4, 1), 5), [base_key(2), base_key(3)]), 5)
    assert choice.candidates == tuple(sid(number, 0, number - 1) for number in (4, 3, 2, 1))


# records and lines


def test_records_are_read_once_and_ever_more_of_them_at_a_time() -> None:
    asked: list[int] = []

    def read(number: int) -> int | None:
        asked.append(number)
        return number if number != 7 else None

    records = Records(range(1, 501), read)
    assert 500 in records and 501 not in records and not asked
    assert records[500] == 500 and asked == [500]
    assert records[499] == 499 and sorted(asked) == [498, 499, 500]
    assert all(records.get(number) == number for number in range(500, 7, -1))
    assert records.get(7) is None and len(asked) == len(set(asked))
    assert list(records) == [number for number in range(1, 501) if number != 7] and len(asked) == 500
    assert READ_AHEAD >= READS_AT_ONCE


def test_a_line_is_found_no_further_than_somebody_looks() -> None:
    looked: list[int] = []

    def ids():
        for number in range(5, 0, -1):
            looked.append(number)
            yield sid(number, 0)

    line = Line(ids())
    assert line and line[0] == sid(5, 0) and looked == [5]
    assert line.index(sid(4, 0)) == 1 and looked == [5, 4]
    assert line[1:3] == (sid(4, 0), sid(3, 0)) and len(line) == 5 and line.cut is None
    assert line == tuple(sid(number, 0) for number in range(5, 0, -1)) and line[-1] == sid(1, 0)
    assert not Line(())
