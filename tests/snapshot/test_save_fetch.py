"""A snapshot through a real store and back; what damage does to it; what a commit promises."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spotckpt.errors import (
    AlreadyExists,
    Corrupt,
    FutureFormat,
    LimitExceeded,
    NothingRestorable,
    OutcomeUnknown,
    SnapshotError,
    Superseded,
    Unavailable,
)
from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.catalog import read_catalog
from spotckpt.snapshot.choose import choose
from spotckpt.snapshot.fetch import (
    evaluated_of,
    pick,
    read_manifest,
    read_manifests,
    read_part,
    read_tensors,
    verify,
)
from spotckpt.snapshot.keys import SnapshotId, claim_key, manifest_key, pack_key, part_key
from spotckpt.snapshot.manifest import MAX_MANIFEST_BYTES, Manifest
from spotckpt.snapshot.save import commit, upload
from spotckpt.store.base import BLOCK_BYTES, Store
from tests.snapshot.bucket import (
    Wrapped,
    arrays_of,
    begin,
    local_store,
    raises_naming,
    said,
    save,
    sid,
    staged,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return local_store(tmp_path / "run")


def load(store: Store, snapshot: SnapshotId) -> dict[str, bytes]:
    """Everything of a snapshot, as a restore reads it."""
    part = read_part(store, read_manifest(store, snapshot))
    buffers = read_tensors(store, part)
    return {entry.name: bytes(buffers[index]) for index, entry in enumerate(part.tensors)}


def expected(seed: int) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays_of(seed).items()}


def path_of(store: Store, key: str) -> Path:
    return Path(store.uri.removeprefix("file://")) / key


def test_what_is_read_is_what_was_saved(store: Store) -> None:
    one = sid(1, 1)
    seen: list[int] = []
    made, data = staged(one, arrays_of(1), extra={"x": (1, 2)}, latest={"a/b": 0.5}, finished=True, reason="final")
    run_id = ensure_run(store).run_id
    manifest, _ = upload(store, made, data, run_id=run_id, parent=str(sid(1, 0)), progress=seen.append)
    with raises_naming(Corrupt, str(one), "missing"):
        read_manifest(store, one)
    commit(store, manifest)
    assert read_manifest(store, one, run_id=run_id) == manifest
    assert (manifest.parent, manifest.finished, manifest.latest) == (sid(1, 0), True, {"a/b": 0.5})
    assert sum(seen) == manifest.uploaded_bytes
    assert load(store, one) == expected(1)
    found = verify(store, one)
    assert (found.problems, found.tensors, found.read_bytes) == ((), 4, made.data_bytes)


def test_only_what_is_asked_for_is_read(store: Store) -> None:
    save(store, sid(1, 1))
    part = read_part(store, read_manifest(store, sid(1, 1)))
    seen: list[int] = []
    buffers = read_tensors(store, part, [1], progress=seen.append)
    assert list(buffers) == [1] and bytes(buffers[1]) == np.int64(10).tobytes() and sum(seen) == 8
    buffers[1][0] = 0  # writable, and ours


def test_big_tensors_are_read_in_pieces(store: Store) -> None:
    arrays = {"big": np.arange(33 << 17, dtype="<i8"), **{f"t{i}": np.arange(i * 7, dtype="<i4") for i in range(20)}}
    assert arrays["big"].nbytes > 2 * BLOCK_BYTES
    made, data = staged(sid(1, 1), arrays)
    commit(store, upload(store, made, data, run_id=ensure_run(store).run_id, parent=None)[0])
    assert load(store, sid(1, 1)) == {name: array.tobytes() for name, array in arrays.items()}
    assert verify(store, sid(1, 1)).problems == ()


def test_uploading_twice_gives_the_same_bytes(store: Store) -> None:
    save(store, sid(1, 1), then_commit=False)
    keys = [pack_key(sid(1, 1)), part_key(sid(1, 1))]
    before = [path_of(store, key).read_bytes() for key in keys]
    manifest = save(store, sid(1, 1), then_commit=False)
    assert [path_of(store, key).read_bytes() for key in keys] == before
    commit(store, manifest)


class SlotChanged(Exception):
    pass


@pytest.mark.parametrize("calls", range(5))
def test_a_slot_that_changes_at_any_step_is_not_committed(store: Store, calls: int) -> None:
    made, data = staged(sid(1, 1), arrays_of(1))
    left = [calls]

    def still_valid() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise SlotChanged

    run_id = ensure_run(store).run_id
    if calls < 4:  # at first, before the pack, after the pack, after the part
        with pytest.raises(SlotChanged):
            upload(store, made, data, run_id=run_id, parent=None, still_valid=still_valid)
        assert read_catalog(store).snapshots == frozenset()
    else:
        upload(store, made, data, run_id=run_id, parent=None, still_valid=still_valid)


def test_data_of_another_length_is_refused(store: Store) -> None:
    made, data = staged(sid(1, 1), arrays_of(1))
    with raises_naming(Corrupt, str(sid(1, 1))):
        upload(store, made, data[:-1], run_id="r", parent=None)


# commit


@pytest.mark.fault(61)
def test_a_zombie_is_told_and_its_bytes_are_never_chosen(store: Store) -> None:
    begin(store, 1)
    save(store, sid(1, 1))
    zombie = save(store, sid(1, 2, 9999), then_commit=False)  # stopped here, for a minute
    begin(store, 2, sid(1, 1))
    for _ in range(2):
        with raises_naming(Superseded, "attempt 2", str(zombie.snapshot)):
            commit(store, zombie)
    assert choose(read_catalog(store, before=3), 3).candidates == (sid(1, 1),)
    save(store, sid(2, 1))
    assert choose(read_catalog(store, before=3), 3).candidates == (sid(2, 1), sid(1, 1))


def test_a_commit_that_is_repeated_is_our_own(store: Store) -> None:
    manifest = save(store, sid(1, 1), then_commit=False)
    commit(store, manifest)
    commit(store, Manifest.from_bytes(manifest.to_bytes(), key=manifest_key(sid(1, 1))))  # as another agent reads it
    assert read_manifest(store, sid(1, 1)) == manifest


@pytest.mark.fault(38)
def test_another_manifest_at_the_key_is_a_conflict(store: Store) -> None:
    manifest = save(store, sid(1, 1), then_commit=False)
    save(store, sid(1, 1), seed=77)
    before = path_of(store, manifest_key(sid(1, 1))).read_bytes()
    with raises_naming(AlreadyExists, str(sid(1, 1))):
        commit(store, manifest)
    assert path_of(store, manifest_key(sid(1, 1))).read_bytes() == before


class LosesReplies(Wrapped):
    """The first `lost` creates land, and nobody hears of it."""

    lost = 1

    def create(self, key: str, data: bytes, **options) -> None:
        self.inner.create(key, data, **options)
        if self.lost:
            self.lost -= 1
            raise OutcomeUnknown("create", key, "no answer")


@pytest.mark.fault(35)
def test_a_lost_reply_to_the_manifest_is_unknown_then_our_own_success(store: Store) -> None:
    manifest = save(store, sid(1, 1), then_commit=False)
    lossy = LosesReplies(store)
    with pytest.raises(OutcomeUnknown):
        commit(lossy, manifest)
    commit(lossy, manifest)
    assert load(store, sid(1, 1)) == expected(10)


class CannotAsk(Wrapped):
    """Whether there is a later claim it tells only once: before the manifest, not after it."""

    asked = 0

    def stat(self, key: str, **options):
        self.asked += key == claim_key(2)
        if self.asked > 1:
            raise Unavailable("stat", key, "503")
        return self.inner.stat(key, **options)


def test_a_commit_that_could_not_be_acknowledged_is_unknown(store: Store) -> None:
    manifest = save(store, sid(1, 1), then_commit=False)
    with raises_naming(OutcomeUnknown, str(sid(1, 1)), "not known"):
        commit(CannotAsk(store), manifest)
    commit(store, manifest)


# damage


def restorable(store: Store, snapshot: SnapshotId) -> bool:
    """Whether a restore takes it; what it takes must be right to the byte. Any refusal names one of its objects."""
    try:
        found = load(store, snapshot)
    except SnapshotError as error:
        assert str(snapshot) in str(error)
        return False
    assert found == expected(snapshot.step)
    return True


def damage_is_seen(store: Store, key: str, changes: list[Callable[[bytes], bytes]]) -> None:
    path = path_of(store, key)
    whole = path.read_bytes()
    for change in changes:
        path.write_bytes(change(whole))
        assert not restorable(store, sid(1, 2)), change(whole)
    path.write_bytes(whole)
    assert restorable(store, sid(1, 2))


def flipped(bit: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = bit % (8 * len(data))
        out = bytearray(data)
        out[place // 8] ^= 1 << place % 8
        return bytes(out)

    return change


def cut(length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:length]


@pytest.fixture
def two(store: Store) -> Store:
    begin(store, 1)
    save(store, sid(1, 1))
    save(store, sid(1, 2), parent=sid(1, 1))
    return store


@pytest.mark.fault(64)
def test_every_bit_of_a_manifest(two: Store) -> None:
    key = manifest_key(sid(1, 2))
    whole = path_of(two, key).read_bytes()
    for bit in range(8 * len(whole)):
        with pytest.raises(Corrupt) as caught:
            Manifest.from_bytes(flipped(bit)(whole), key=key)
        assert key in str(caught.value)
    damage_is_seen(two, key, [flipped(bit) for bit in range(0, 8 * len(whole), 29)])


@pytest.mark.fault(64)
def test_random_bits_of_part_and_pack(two: Store) -> None:
    random.seed(64)
    part = [flipped(random.getrandbits(40)) for _ in range(300)]
    damage_is_seen(two, part_key(sid(1, 2)), part)
    manifest = read_manifest(two, sid(1, 2))
    data_from = 8 * manifest.packs[0].header_length
    bits = range(data_from, 8 * manifest.packs[0].length)
    damage_is_seen(two, pack_key(sid(1, 2)), [flipped(bit) for bit in random.sample(bits, 300)])


@pytest.mark.fault(64)
def test_verify_sees_what_a_restore_need_not(two: Store) -> None:
    path = path_of(two, pack_key(sid(1, 2)))
    whole = path.read_bytes()
    header = read_manifest(two, sid(1, 2)).packs[0].header_length
    for bit in range(0, 8 * len(whole), 37):
        path.write_bytes(flipped(bit)(whole))
        problems = verify(two, sid(1, 2)).problems
        assert len(problems) == 1 and pack_key(sid(1, 2)) in problems[0]
        assert ("header" in problems[0]) == (bit // 8 < header)
    path.unlink()
    assert all("missing" in problem for problem in verify(two, sid(1, 2)).problems)


@pytest.mark.fault(65)
@pytest.mark.parametrize("key", [manifest_key(sid(1, 2)), part_key(sid(1, 2)), pack_key(sid(1, 2))])
def test_truncation_at_every_length_and_zeros(two: Store, key: str) -> None:
    length = path_of(two, key).stat().st_size
    changes = [cut(size) for size in range(length)]
    changes += [lambda data: bytes(len(data)), lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2)]
    damage_is_seen(two, key, changes)


@pytest.mark.fault(65)
@pytest.mark.parametrize("name", [manifest_key, part_key, pack_key])
def test_swapped_objects(two: Store, name: Callable[[SnapshotId], str]) -> None:
    one, other = path_of(two, name(sid(1, 1))), path_of(two, name(sid(1, 2)))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert not restorable(two, sid(1, 1)) and not restorable(two, sid(1, 2))


def test_a_manifest_of_another_run_is_corrupt(two: Store) -> None:
    with raises_naming(Corrupt, manifest_key(sid(1, 2)), "not other"):
        read_manifest(two, sid(1, 2), run_id="other")


@pytest.mark.fault(66)
@pytest.mark.parametrize("name", [manifest_key, part_key, pack_key])
def test_a_missing_object_is_said_and_the_next_older_is_used(two: Store, name: Callable[[SnapshotId], str]) -> None:
    catalog = read_catalog(two, before=2)
    path_of(two, name(sid(1, 2))).unlink()
    lines, say = said()
    found = pick(two, choose(catalog, 2), lambda one: load(two, one), say)
    assert found == (sid(1, 1), expected(10))
    assert len(lines) == 1 and str(sid(1, 2)) in lines[0] and "missing" in lines[0]


@pytest.mark.fault(67)
def test_the_newest_k_corrupt_and_then_all(store: Store) -> None:
    begin(store, 1)
    ids = [sid(1, n) for n in range(6)]
    for one in ids:
        save(store, one)
    objects = [pack_key, part_key, manifest_key]
    for bad, one in enumerate(reversed(ids)):
        lines, say = said()
        choice = choose(read_catalog(store, before=2), 2)
        found = pick(store, choice, lambda one: load(store, one), say)
        assert found == (one, expected(one.step)) and len(lines) == bad
        assert choice.skipped(one) == tuple(str(skipped) for skipped in reversed(ids[len(ids) - bad :]))
        path = path_of(store, objects[bad % 3](one))
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    lines, say = said()
    with pytest.raises(NothingRestorable) as caught:
        pick(store, choose(read_catalog(store, before=2), 2), lambda one: load(store, one), say)
    assert all(str(one) in str(caught.value) for one in ids)


def test_an_exact_selector_does_not_fall_back(two: Store) -> None:
    from spotckpt.address import Selector

    path_of(two, pack_key(sid(1, 2))).unlink()
    for text in ("step=20", str(sid(1, 2))):
        choice = choose(read_catalog(two, before=2), 2, Selector.parse(text))
        with raises_naming(NothingRestorable, str(sid(1, 2))):
            pick(two, choice, lambda one: load(two, one), lambda line: None)


def test_a_fresh_choice_picks_nothing(store: Store) -> None:
    assert pick(store, choose(read_catalog(store), 1), lambda one: load(store, one), lambda line: None) is None


@pytest.mark.fault(68)
def test_a_future_manifest_is_an_error_and_never_skipped(two: Store) -> None:
    from tests.snapshot.test_envelope import sealed

    path_of(two, manifest_key(sid(1, 2))).write_bytes(sealed(b'{"format":2,"what":"ever"}'))
    choice = choose(read_catalog(two, before=2), 2)
    with raises_naming(FutureFormat, manifest_key(sid(1, 2)), "format 2", "upgrade"):
        pick(two, choice, lambda one: load(two, one), lambda line: None)


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.fault(69)
@pytest.mark.parametrize(
    "key",
    [
        "run.json",
        "attempts/0001.json",
        "attempts/0001.base.json",
        "attempts/0001.heartbeat.json",
        manifest_key(sid(1, 2)),
        part_key(sid(1, 2)),
        pack_key(sid(1, 2)),
    ],
)
def test_a_pickle_in_any_slot_is_never_executed(two: Store, tmp_path: Path, key: str) -> None:
    canary = tmp_path / "executed"
    path_of(two, key).write_bytes(pickle.dumps(Canary(canary)))
    catalog = read_catalog(two, before=2, everything=True)
    if key.startswith(("run", "attempts")):
        assert key in catalog.problems and key in str(catalog.problems[key])
    else:
        assert not restorable(two, sid(1, 2))
    assert pick(two, choose(catalog, 2), lambda one: load(two, one), lambda line: None)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary works"


@pytest.mark.fault(70)
def test_a_declared_size_is_not_allocated(two: Store) -> None:
    from dataclasses import replace

    manifest = read_manifest(two, sid(1, 2))
    huge = replace(manifest.parts[0], length=1 << 40)
    with raises_naming(LimitExceeded, part_key(sid(1, 2))):
        read_part(two, replace(manifest, parts=(huge,)))
    path_of(two, manifest_key(sid(1, 2))).write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(LimitExceeded):
        read_manifest(two, sid(1, 2))
    part = read_part(two, manifest)
    first = part.tensors[0]
    big = first._replace(shape=(1 << 40,), chunks=(first.chunks[0]._replace(length=1 << 42),))
    with raises_naming(Corrupt, pack_key(sid(1, 2))):
        read_tensors(two, replace(part, tensors=(big,)))


@pytest.mark.fault(71)
@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "packs/\0/x", "run.json"])
@pytest.mark.parametrize("where", ["parts", "packs"])
def test_a_key_outside_the_grammar_in_a_manifest_is_corrupt_and_named(two: Store, key: str, where: str) -> None:
    from dataclasses import replace

    manifest = read_manifest(two, sid(1, 2))
    changed = replace(manifest, **{where: (replace(getattr(manifest, where)[0], key=key),)})
    path_of(two, manifest_key(sid(1, 2))).write_bytes(changed.to_bytes())
    with pytest.raises(Corrupt) as caught:
        read_manifest(two, sid(1, 2))
    assert repr(key) in str(caught.value) and manifest_key(sid(1, 2)) in str(caught.value)


def test_a_part_of_another_snapshot_is_corrupt(two: Store) -> None:
    from dataclasses import replace

    first, second = (read_manifest(two, one) for one in (sid(1, 1), sid(1, 2)))
    path_of(two, manifest_key(sid(1, 2))).write_bytes(replace(second, parts=first.parts).to_bytes())
    with raises_naming(Corrupt, manifest_key(sid(1, 2)), part_key(sid(1, 1))):
        read_manifest(two, sid(1, 2))
    path_of(two, manifest_key(sid(1, 2))).write_bytes(replace(second, packs=first.packs).to_bytes())
    with raises_naming(Corrupt, part_key(sid(1, 2))):
        read_part(two, read_manifest(two, sid(1, 2)))


@pytest.mark.fault(65)
def test_a_part_that_is_whole_but_not_the_one_committed_is_corrupt(two: Store) -> None:
    from dataclasses import replace

    manifest = read_manifest(two, sid(1, 2))
    part = read_part(two, manifest)
    for other in (replace(part, tree={}), replace(part, tensors=part.tensors[:1])):
        path_of(two, part_key(sid(1, 2))).write_bytes(other.to_bytes())
        with raises_naming(Corrupt, part_key(sid(1, 2))):
            read_part(two, manifest)


@pytest.mark.fault(66)
def test_missing_objects_are_corrupt_and_named(two: Store) -> None:
    manifest = read_manifest(two, sid(1, 2))
    part = read_part(two, manifest)
    for name, look in (
        (pack_key, lambda: read_tensors(two, part)),
        (part_key, lambda: read_part(two, manifest)),
        (manifest_key, lambda: read_manifest(two, sid(1, 2))),
    ):
        path_of(two, name(sid(1, 2))).unlink()
        with raises_naming(Corrupt, name(sid(1, 2)), "missing"):
            look()


def test_many_manifests_and_the_metrics_in_them(two: Store) -> None:
    save(two, sid(1, 3), evaluated={"valid/top1": 0.5})
    path_of(two, manifest_key(sid(1, 1))).write_bytes(b"x")
    found = read_manifests(two, [sid(1, 1), sid(1, 2), sid(1, 3)])
    assert isinstance(found[sid(1, 1)], Corrupt) and list(found) == [sid(1, 1), sid(1, 2), sid(1, 3)]
    lines, say = said()
    evaluated = evaluated_of(two, run_id=None, say=say)
    assert evaluated(list(found)) == {sid(1, 2): {}, sid(1, 3): {"valid/top1": 0.5}}
    assert len(lines) == 1 and str(sid(1, 1)) in lines[0]
