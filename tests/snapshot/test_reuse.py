"""What a snapshot need not send: decided rightly for any history, and found again byte for byte."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spotckpt.errors import Unavailable
from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.fetch import read_manifest, read_part, read_tensors, verify
from spotckpt.snapshot.keys import SnapshotId, manifest_key, pack_key, part_key
from spotckpt.snapshot.manifest import Manifest, PackRef
from spotckpt.snapshot.pack import TensorSpec
from spotckpt.snapshot.part import Chunk, TensorEntry
from spotckpt.snapshot.reuse import (
    MAX_OLD_PACKS,
    PROBE_BYTES,
    Place,
    Previous,
    candidates,
    ranges,
    worth_keeping,
)
from spotckpt.snapshot.save import commit, find_previous, upload
from spotckpt.store.base import Store
from tests.snapshot.bucket import Wrapped, begin, local_store, said, sid, staged
from tests.support import checker

Arrays = Mapping[str, np.ndarray]


def entry(spec: TensorSpec, offset: int, length: int) -> TensorEntry:
    """A staged tensor at that offset."""
    return TensorEntry(*spec, (Chunk(0, offset, length, (0,) * len(spec.shape), spec.shape),))


@dataclass
class Line:
    """Snapshots one after the other, each the child of the one before."""

    store: Store
    previous: Previous | None = None
    last: Manifest | None = None
    hashed: int = 0
    hashed_before: int = 0
    """Of these, how many before it was known what to send."""

    def save(self, arrays: Arrays, *, forget: bool = False) -> Manifest:
        parent = self.last.snapshot if self.last else None
        one = sid(1, parent.sequence + 1 if parent else 0)
        run_id = ensure_run(self.store).run_id
        if forget and parent:
            self.previous = find_previous(self.store, parent, run_id=run_id, say=pytest.fail)
        made, data = staged(one, arrays, extra={"step": one.step})
        counts: list[int] = []
        self.last, self.previous = upload(
            self.store,
            made,
            data,
            run_id=run_id,
            parent=parent,
            previous=self.previous,
            hashed=counts.append,
            planned=self._planned(counts),
        )
        self.hashed = sum(counts)
        commit(self.store, self.last)
        return self.last

    def _planned(self, counts: list[int]) -> Callable[[int], None]:
        def planned(_: int) -> None:
            self.hashed_before = sum(counts)

        return planned

    def check(self, arrays: Arrays) -> None:
        """What is read is what was saved; the independent checker agrees, also about the packs."""
        assert self.last is not None
        part = read_part(self.store, read_manifest(self.store, self.last.snapshot))
        found = read_tensors(self.store, part)
        assert {entry.name: bytes(found[i]) for i, entry in enumerate(part.tensors)} == {
            name: array.tobytes() for name, array in arrays.items()
        }
        bucket = checker.Bucket(self.store.uri)
        checker.inspect(bucket, checker.Id.parse(str(self.last.snapshot)))


@contextmanager
def new_line() -> Iterator[Line]:
    memory = Path("/dev/shm")  # since every snapshot syncs a dozen files
    root = Path(tempfile.mkdtemp(prefix="spotckpt-reuse-", dir=memory if memory.is_dir() else None))
    try:
        store = local_store(root)
        begin(store, 1)
        yield Line(store)
    finally:
        shutil.rmtree(root)


@pytest.fixture
def line() -> Iterator[Line]:
    with new_line() as made:
        yield made


def words(num_bytes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 31, num_bytes // 4).astype("<i4")


def own_bytes(manifest: Manifest) -> int:
    """Tensor bytes that were sent."""
    return sum(pack.length - pack.header_length for pack in manifest.packs if str(manifest.snapshot) in pack.key)


# any history

SIZES = [0, 8, 400, PROBE_BYTES, PROBE_BYTES + 4, 3 * PROBE_BYTES]
CHANGES = ["no", "no", "no", "first", "last", "back", "shape", "gone"]


def changed(array: np.ndarray, earlier: np.ndarray, how: str) -> np.ndarray:
    array = array.copy()
    if how in ("first", "last") and array.size:
        array.flat[0 if how == "first" else -1] += 1
    if how == "shape":
        return array.reshape((1, *array.shape))
    return earlier if how == "back" else array


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_history_is_found_again_and_refers_to_its_parent_s_packs_only(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=6))
    names = [f"t{number}" for number in range(len(sizes))]
    state = {name: words(size, number) for number, (name, size) in enumerate(zip(names, sizes, strict=True))}
    past = [state]
    with new_line() as line:
        for _ in range(data.draw(st.integers(2, 5))):
            line.save(state, forget=data.draw(st.booleans()))
            line.check(state)
            how = {name: data.draw(st.sampled_from(CHANGES)) for name in names}
            earlier = past[max(0, len(past) - 2)]
            following = {
                name: changed(state.get(name, past[0][name]), earlier.get(name, past[0][name]), how[name])
                for name in names
                if how[name] != "gone"
            }
            past.append(state)
            state = following


# the decision alone

PACK = PackRef(pack_key(sid(1, 0)), 1008, 8, "0" * 64)


def place(length: int, pack: PackRef = PACK) -> Place:
    return Place(Chunk(0, 8, length, (0,), (length,), "d" * 64), pack)


def packs_of(lengths: Mapping[str, int]) -> dict[str, PackRef]:
    return {name: replace(PACK, key=pack_key(sid(1, int(name))), length=8 + size) for name, size in lengths.items()}


@given(
    sizes=st.dictionaries(st.integers(0, 40).map(str), st.integers(0, 100), min_size=1),
    live=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 60)), max_size=80),
)
def test_what_is_kept_fills_at_least_half_of_each_pack(sizes: dict[str, int], live: list[tuple[int, int]]) -> None:
    packs = packs_of(sizes)
    names = sorted(packs)
    found = {i: place(size, packs[names[number % len(names)]]) for i, (number, size) in enumerate(live)}
    kept = worth_keeping(found)
    assert kept.items() <= found.items()
    bytes_in = {pack: sum(one.chunk.length for one in found.values() if one.pack == pack) for pack in packs.values()}
    used = {one.pack for one in kept.values()}
    assert len(used) <= MAX_OLD_PACKS
    for pack in {one.pack for one in found.values()}:
        half = 2 * bytes_in[pack] >= pack.length - pack.header_length
        assert half or pack not in used
        # a pack is kept for all that is live in it, or for nothing
        mine = [index for index, one in found.items() if one.pack == pack]
        assert sum(index in kept for index in mine) in (0, len(mine))
        if half and pack not in used:
            assert len(used) == MAX_OLD_PACKS and bytes_in[pack] <= min(bytes_in[one] for one in used)


def test_of_too_many_packs_those_with_most_of_the_bytes_are_kept() -> None:
    packs = packs_of({f"{number}": 10 + number for number in range(MAX_OLD_PACKS + 4)})
    kept = worth_keeping({int(name): place(10 + int(name), pack) for name, pack in packs.items()})
    assert sorted(kept) == list(range(4, MAX_OLD_PACKS + 4))


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12))
def test_ranges_are_what_was_asked_for_without_neighbours(sizes: list[tuple[int, bool]]) -> None:
    offset, entries, wanted, expected = 0, [], [], []
    for index, (size, asked) in enumerate(sizes):
        entries.append(entry(TensorSpec(f"t{index}", "U8", (size,)), offset, size))
        if asked:
            wanted.append(index)
            expected += range(offset, offset + size)
        offset += size
    found = list(ranges(entries, wanted))
    assert [at for start, end in found for at in range(start, end)] == expected
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(found))


@pytest.mark.parametrize("other", [{"dtype": "I8"}, {"shape": (1, 9000)}, {"stride": (1,)}, {"name": "another"}])
def test_a_tensor_of_another_kind_is_no_candidate(other: dict[str, Any]) -> None:
    spec = TensorSpec("t", "U8", (9000,))
    known, another = (entry(one, 0, 9000) for one in (spec, spec._replace(**other)))
    previous = Previous(sid(1, 0), (PACK,), {"t": (known, None)})
    assert candidates([known], ["p"], previous) == {0: Place(known.chunks[0], PACK)}
    assert candidates([another], ["p"], previous) == {}


def test_a_tensor_in_several_chunks_is_sent_again() -> None:
    whole = entry(TensorSpec("t", "U8", (9000,)), 0, 9000)
    halves = tuple(whole.chunks[0]._replace(start=(start,), shape=(4500,)) for start in (0, 4500))
    previous = Previous(sid(1, 0), (PACK,), {"t": (whole._replace(chunks=halves), None)})
    assert candidates([whole], ["p"], previous) == {}


# what is sent and hashed

FROZEN, SMALL = words(400_000, 1), words(8_000, 2)


def test_frozen_weights_are_sent_once(line: Line) -> None:
    first = line.save({"frozen": FROZEN, "head": SMALL, "step": words(8, 0)})
    for step in (1, 2, 3):
        state = {"frozen": FROZEN, "head": SMALL + step, "step": words(8, step)}
        manifest = line.save(state)
        line.check(state)
        assert own_bytes(manifest) == SMALL.nbytes + 8
        assert [pack.key for pack in manifest.packs] == [pack_key(manifest.snapshot), first.packs[0].key]
        assert manifest.data_bytes == FROZEN.nbytes + SMALL.nbytes + 8
        part = path_of(line.store, part_key(manifest.snapshot)).stat().st_size
        assert manifest.uploaded_bytes == manifest.packs[0].length + part


def test_a_snapshot_that_changed_nothing_has_no_pack_of_its_own(line: Line) -> None:
    state = {"frozen": FROZEN, "none": words(0, 0)}
    first = line.save(state)
    again = line.save(state)
    line.check(state)
    assert again.packs == first.packs and not path_of(line.store, pack_key(again.snapshot)).exists()
    assert verify(line.store, again.snapshot).problems == ()


def test_a_state_without_tensors_has_no_pack(line: Line) -> None:
    manifest = line.save({})
    line.check({})
    assert manifest.packs == () and verify(line.store, manifest.snapshot).problems == ()


def test_what_is_left_of_a_pack_is_sent_again_once_it_is_less_than_half(line: Line) -> None:
    a, b, c = (words(40_000, seed) for seed in range(3))
    first = line.save({"a": a, "b": b, "c": c})
    second = line.save({"a": a, "b": b, "c": c + 1})
    assert own_bytes(second) == c.nbytes
    state = {"a": a, "b": b + 1, "c": c + 1}
    third = line.save(state)
    line.check(state)
    assert own_bytes(third) == a.nbytes + b.nbytes
    assert [pack.key for pack in third.packs] == [pack_key(third.snapshot), pack_key(second.snapshot)]
    assert first.packs[0] not in third.packs


def test_what_is_again_as_it_was_two_snapshots_ago_is_sent(line: Line) -> None:
    for step in range(4):
        state = {"blinks": SMALL + step % 2}
        manifest = line.save(state)
        line.check(state)
        assert own_bytes(manifest) == SMALL.nbytes


def test_a_tensor_that_changes_behind_its_probe_is_sent(line: Line) -> None:
    line.save({"frozen": FROZEN, "late": SMALL})
    late = SMALL.copy()
    late[-1] += 1
    assert SMALL.nbytes > PROBE_BYTES
    state = {"frozen": FROZEN, "late": late}
    assert own_bytes(line.save(state)) == SMALL.nbytes
    line.check(state)


def test_a_state_that_changes_wholly_is_hashed_once_besides_its_probes(line: Line) -> None:
    state = {f"t{number}": words(50_000, number) for number in range(20)}
    total, probes = 20 * 50_000, 20 * PROBE_BYTES
    line.save(state)
    assert line.hashed == total + probes
    for step in (1, 2):
        line.save({name: array + step for name, array in state.items()})
        assert (line.hashed, line.hashed_before) == (total + probes, probes)
    # nothing in memory, as after a resume: hashed to compare it, and not again to send it
    line.save({name: array + 3 for name, array in state.items()}, forget=True)
    assert line.hashed == total + probes


def test_what_could_not_be_kept_anyhow_is_not_read_beforehand(line: Line) -> None:
    """A few constants in a state that changes: their pack is not worth it, so they are hashed as they are sent."""
    line.save({"constant": SMALL, "weights": FROZEN})
    manifest = line.save({"constant": SMALL, "weights": FROZEN + 1})
    assert own_bytes(manifest) == SMALL.nbytes + FROZEN.nbytes
    assert line.hashed == SMALL.nbytes + FROZEN.nbytes + 2 * PROBE_BYTES
    assert line.hashed_before == 2 * PROBE_BYTES


def test_an_unchanged_state_is_hashed_once_and_not_sent(line: Line) -> None:
    line.save({"frozen": FROZEN})
    manifest = line.save({"frozen": FROZEN})
    assert (own_bytes(manifest), line.hashed) == (0, FROZEN.nbytes + PROBE_BYTES)


# what may go wrong with the parent


def path_of(store: Store, key: str) -> Path:
    return Path(store.uri.removeprefix("file://")) / key


class Repeats(Wrapped):
    """Sends every object two times and a half, as a store whose connection breaks does."""

    def put(self, key, data, *, reading=None, **options):
        if reading is not None:
            whole = memoryview(b"".join(data))
            for stop in (len(whole) // 2, len(whole)):
                for start in range(0, stop, 1000):
                    reading(start, whole[start : min(start + 1000, stop)])
        return self.inner.put(key, data, reading=reading, **options)


def test_a_repeated_try_does_not_disturb_the_digests(line: Line) -> None:
    line.store = Repeats(line.store)
    for step in range(3):
        state = {"a": words(9_999, 0), "b": SMALL + step, "c": words(0, 0), "d": words(400, step)}
        line.save(state)
        line.check(state)
        assert verify(line.store, sid(1, step)).problems == ()


@pytest.mark.fault(66)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_pack_that_is_gone_is_said_and_everything_is_sent(line: Line, damage: Callable[[Path], object]) -> None:
    first = line.save({"frozen": FROZEN, "head": SMALL})
    damage(path_of(line.store, first.packs[0].key))
    lines, say = said()
    one, state = sid(1, 9), {"frozen": FROZEN, "head": SMALL + 1}
    made, data = staged(one, state, extra={"step": one.step})
    sent: list[int] = []
    planned: list[int] = []
    line.last, _ = upload(
        line.store,
        made,
        data,
        run_id=first.run_id,
        parent=first.snapshot,
        previous=line.previous,
        planned=planned.append,
        progress=sent.append,
        say=say,
    )
    commit(line.store, line.last)
    line.check(state)
    assert [pack.key for pack in line.last.packs] == [pack_key(one)]
    assert len(lines) == 1 and first.packs[0].key in lines[0] and str(one) in lines[0]
    assert planned == [SMALL.nbytes, SMALL.nbytes + FROZEN.nbytes] and sum(sent) > sum(planned)


class CannotRead(Wrapped):
    def read(self, key: str, **options):
        raise Unavailable("read", key, "503")


@pytest.mark.parametrize("key", [manifest_key, part_key])
@pytest.mark.parametrize("how", ["missing", "damaged", "unavailable"])
def test_a_parent_that_cannot_be_read_is_said_and_nothing_is_kept(
    line: Line, key: Callable[[SnapshotId], str], how: str
) -> None:
    manifest = line.save({"frozen": FROZEN})
    path = path_of(line.store, key(manifest.snapshot))
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:-9] + b"012345678")
    store = CannotRead(line.store) if how == "unavailable" else line.store
    lines, say = said()
    assert find_previous(store, manifest.snapshot, run_id=manifest.run_id, say=say) is None
    named = manifest_key(manifest.snapshot) if how == "unavailable" else key(manifest.snapshot)
    assert len(lines) == 1 and named in lines[0]


@pytest.mark.fault(64)
@pytest.mark.fault(66)
def test_damage_in_an_old_pack_is_told_for_every_snapshot_that_uses_it(line: Line) -> None:
    first = line.save({"frozen": FROZEN, "head": SMALL})
    ids = [first.snapshot, *(line.save({"frozen": FROZEN, "head": SMALL + step}).snapshot for step in (1, 2))]
    alone = line.save({"head": SMALL}).snapshot
    path = path_of(line.store, first.packs[0].key)
    whole = bytearray(path.read_bytes())
    whole[first.packs[0].header_length + 77] ^= 1
    path.write_bytes(whole)
    for one in ids:
        (problem,) = verify(line.store, one).problems
        assert first.packs[0].key in problem and "frozen" in problem
    assert verify(line.store, alone).problems == ()
    path.unlink()
    for one in ids:
        problems = verify(line.store, one).problems
        assert problems and all(first.packs[0].key in problem and "missing" in problem for problem in problems)
    assert verify(line.store, alone).problems == ()


@pytest.mark.parametrize("sequence", [0, 2])
def test_only_the_parent_s_packs_may_be_given(line: Line, sequence: int) -> None:
    line.save({"frozen": FROZEN})
    made, data = staged(sid(1, 5), {"frozen": FROZEN})
    with pytest.raises(AssertionError, match="parent"):
        upload(
            line.store,
            made,
            data,
            run_id="r",
            parent=None if sequence == 0 else sid(1, sequence),
            previous=line.previous,
        )
