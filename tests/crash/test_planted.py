"""The same scenes with bugs planted in the protocol: the checker must notice every one of them.

Each is a bug that a checkpoint library has had, or could easily get, and that no test without faults would show.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from spotckpt.address import Selector
from spotckpt.errors import AlreadyExists, OutcomeUnknown
from spotckpt.snapshot import attempts, fetch, save
from spotckpt.snapshot.catalog import Catalog, read_catalog
from spotckpt.snapshot.choose import Choice
from spotckpt.snapshot.keys import SnapshotId, manifest_key, part_key
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.part import MAX_PART_BYTES, Part
from spotckpt.snapshot.records import Claim
from spotckpt.snapshot.reuse import Previous
from spotckpt.snapshot.segments import SegmentRef
from spotckpt.snapshot.staged import Staged
from spotckpt.store.base import Store
from spotckpt.store.local import LocalStore
from spotckpt.store.retry import Retrying
from tests.crash.conftest import NewRun
from tests.crash.schedule import all_schedules
from tests.crash.test_enumerate import damaged_base, empty, play, rewind, three
from tests.crash.test_interleavings import Play, Scene, both_start, late_commits
from tests.crash.world import RAW, REAL, Actor, Past, Protocol, World
from tests.support.checker import Violation
from tests.support.faulty_store import Faults, Kind, enumerate_faults


def expect_caught(scenario: Callable[[], object], match: str) -> None:
    with pytest.raises(Violation, match=match):
        scenario()


def in_every_order(new_run: NewRun, scene: Scene, protocol: Protocol) -> Callable[[], object]:
    return lambda: all_schedules(Play(new_run, scene, protocol), max_switches=2)


def cut_everywhere(new_run: NewRun, kind: Kind, protocol: Protocol) -> Callable[[], object]:
    return lambda: enumerate_faults(kind, partial(play, Past(new_run, empty, protocol=protocol)))


def manifest_before_bytes(store: Store, staged: Staged, data: memoryview, **options: Any) -> tuple[Manifest, Previous]:
    """Commits first, uploads then."""
    elsewhere = tempfile.mkdtemp()
    scratch = LocalStore(elsewhere)
    manifest, sent = save.upload(scratch, staged, data, **options)
    store.put_if_absent(manifest_key(manifest.snapshot), manifest.to_bytes())
    for found in scratch.list("packs/"):
        store.put(found.key, [scratch.read(found.key, limit_bytes=found.size_bytes)])
    shutil.rmtree(elsewhere)
    return manifest, sent


def test_manifest_before_the_bytes(new_run: NewRun) -> None:
    protocol = replace(REAL, upload=manifest_before_bytes)
    expect_caught(cut_everywhere(new_run, Kind.DIE_BEFORE, protocol), "I2/I3: .* committed and not whole")


def test_acknowledged_before_the_manifest(new_run: NewRun) -> None:
    """Tells that all is well when the bytes are there, and means to commit with the next snapshot."""
    waiting: list[Manifest] = []

    def one_behind(store: Store, manifest: Manifest) -> None:
        waiting.append(manifest)
        if len(waiting) > 1:
            save.commit(store, waiting[-2])

    protocol = replace(REAL, commit=one_behind)
    expect_caught(cut_everywhere(new_run, Kind.DIE_BEFORE, protocol), "I1: .* was acknowledged")


def test_acknowledged_without_asking_for_a_successor(new_run: NewRun) -> None:
    def only_put(store: Store, manifest: Manifest) -> None:
        store.put_if_absent(manifest_key(manifest.snapshot), manifest.to_bytes())

    protocol = replace(RAW, commit=only_put)
    expect_caught(in_every_order(new_run, late_commits, protocol), "I1: .* was acknowledged")


def test_listing_before_claiming(new_run: NewRun) -> None:
    def list_and_take(store: Store, won: Callable[[Claim], None], **options: Any) -> tuple[Claim, Catalog]:
        found = read_catalog(store)
        claim = attempts.take(store, **options)
        won(claim)
        return claim, found

    protocol = replace(RAW, take_and_list=list_and_take)
    expect_caught(in_every_order(new_run, late_commits, protocol), "I1: .* (was|were) acknowledged")


def test_choosing_the_highest_step(new_run: NewRun) -> None:
    def by_step(catalog: Catalog, before: int, selector: Selector) -> Choice:
        found = sorted(catalog.snapshots, key=lambda one: one.step, reverse=True)
        return Choice(tuple(found), not found, (), "")

    protocol = replace(RAW, choose=by_step)
    expect_caught(in_every_order(new_run, late_commits, protocol), "a restart chose .* where it must choose")


def test_choosing_the_newest_of_all_branches(new_run: NewRun) -> None:
    """Forgets a rewind whose attempt died before its first commit."""

    def by_id(catalog: Catalog, before: int, selector: Selector) -> Choice:
        found = sorted((one for one in catalog.snapshots if selector.step in (0, one.step)), reverse=True)
        return Choice(tuple(found), not found, (), "")

    past = Past(new_run, three, protocol=replace(REAL, choose=by_id))
    expect_caught(
        lambda: enumerate_faults(Kind.DIE_BEFORE, lambda faults: rewind(past(), faults, "newest")),
        "a restart chose .*-s00000003-.* where it must choose .*-s00000001-",
    )


def test_digests_ignored(new_run: NewRun) -> None:
    def trusting(store: Store, snapshot: SnapshotId) -> int:
        fetch.read_manifest(store, snapshot)
        key = part_key(snapshot)
        part = Part.from_bytes(store.read(key, limit_bytes=MAX_PART_BYTES), key=key)
        for name in part.packs:
            store.stat(name)
        return int(part.tree["step"])

    past = Past(new_run, three, protocol=replace(REAL, read=trusting))
    expect_caught(lambda: damaged_base(past(), Faults(), "pack"), "a restart chose .* where it must choose")


def test_unknown_taken_for_failed(new_run: NewRun) -> None:
    """Cleans up after a commit whose answer was lost."""

    def tidy(store: Store, manifest: Manifest) -> None:
        try:
            save.commit(store, manifest)
        except OutcomeUnknown:
            store.delete([pack.key for pack in manifest.packs])
            raise

    protocol = replace(RAW, commit=tidy)
    expect_caught(cut_everywhere(new_run, Kind.LOST_REPLY, protocol), "I2/I3: .*rank-00000.safetensors is missing")


class LooksThenWrites(Retrying):
    """Put-if-absent as fsspec's local file system does it: two writers can both find nothing there."""

    def create(self, key: str, data: bytes, **options: Any) -> None:
        if self.exists(key):
            raise AlreadyExists("create", key, "it is there")
        self.put(key, [data])


def test_put_if_absent_that_is_not_exclusive(new_run: NewRun) -> None:
    protocol = replace(REAL, wrap=LooksThenWrites)
    expect_caught(in_every_order(new_run, both_start, protocol), "two winners|I1|I2")


def test_store_that_tears_a_manifest(new_run: NewRun) -> None:
    """What a store without a temporary file does when its writer dies."""

    trace = _trace_of_a_life(new_run)
    number = next(n for n, operation in enumerate(trace, 1) if operation.startswith("create snapshots/"))
    world = World(new_run())
    Actor(world, Faults(Kind.TORN, number, tears=True)).live()
    expect_caught(world.check, "I2/I3: .* committed and not whole")


def _trace_of_a_life(new_run: NewRun) -> list[str]:
    actor = Actor(World(new_run()))
    assert actor.live() is None
    return actor.faults.trace


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda segments: segments[1:], "a gap, or a point twice"),
        (lambda segments: (*segments, segments[-1]), "a gap, or a point twice"),
        (lambda segments: segments[::-1], "a gap, or a point twice|its parent does not begin with"),
    ],
    ids=["one is missing", "one is there twice", "another order"],
)
def test_the_segments_of_a_history_are_listed_wrongly(
    new_run: NewRun, wrong: Callable[[tuple[SegmentRef, ...]], tuple[SegmentRef, ...]], match: str
) -> None:
    def upload(store: Store, staged: Staged, data: memoryview, **options: Any) -> tuple[Manifest, Previous]:
        manifest, sent = save.upload(store, staged, data, **options)
        return (replace(manifest, history=wrong(manifest.history)) if len(manifest.history) > 1 else manifest), sent

    def scenario() -> None:
        world = World(new_run(), replace(REAL, upload=upload))
        Actor(world).live(saves=5)
        world.check()

    expect_caught(scenario, match)
