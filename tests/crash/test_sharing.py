"""Snapshots that share packs, while the parent that they share them with is unreadable or loses a pack."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from spotckpt.snapshot import save
from spotckpt.snapshot.hashing import Hashing
from spotckpt.snapshot.part import TensorEntry
from spotckpt.snapshot.reuse import Place, Previous, candidates, worth_keeping
from tests.crash.conftest import NewRun
from tests.crash.test_planted import expect_caught
from tests.crash.world import RAW, REAL, Actor, Protocol, World, recover
from tests.support.checker import Bucket
from tests.support.faulty_store import Faults, Kind, enumerate_faults

SAVES = 6


def test_the_scenes_of_this_room_do_share_packs(new_run: NewRun) -> None:
    """Or they would prove nothing: snapshots of up to three older packs, and tensors sent again though unchanged."""
    world = World(new_run())
    assert Actor(world).live(saves=SAVES) is None
    world.check()
    bucket = Bucket(world.uri)
    manifests = [bucket.record(f"snapshots/{one}.json") for one in bucket.snapshots]
    origins = [[int(pack["key"].split("-s")[1][:8]) for pack in manifest["packs"]] for manifest in manifests]
    assert origins == [[1], [2, 1], [3, 1, 2], [4, 1], [5, 1, 4], [6, 1]]


def test_a_fault_in_reading_the_parent_costs_bytes_and_nothing_else(new_run: NewRun) -> None:
    """The first save of a restart, which reads its parent; without retries, so that each fault is felt."""
    cut = set()

    def scenario(faults: Faults) -> None:
        world = World(new_run(), RAW)
        assert Actor(world).live(saves=2) is None
        error = Actor(world, faults).live(saves=1)
        if any("all of the next snapshot is uploaded" in said for said in world.said):
            cut.add(faults.trace[faults.at - 1].split("/")[0])
            assert error is None
        recover(world)
        shutil.rmtree(world.root)

    enumerate_faults(Kind.ONCE, scenario)
    assert cut == {"read snapshots", "read packs"}


class Meanwhile(Faults):
    """No fault of its own: something happens before one operation."""

    def __init__(self, at: int, happens: Callable[[], object]) -> None:
        super().__init__()
        self.number = at
        self.happens = happens

    def _due(self, what: str) -> bool:
        if len(self.trace) + 1 == self.number:
            self.happens()
        return super()._due(what)


@pytest.mark.fault(66)
@pytest.mark.parametrize("again", [0, 1], ids=["in memory", "read again"])
def test_a_pack_of_the_parent_that_goes_at_any_operation_of_a_save(new_run: NewRun, again: int) -> None:
    number, sent_all = 1, 0
    while True:
        world = World(new_run())
        actor = Actor(world)
        actor.start()
        for _ in range(2):
            actor.save()
        if again:
            actor.previous = None
        first = world.acknowledged[0]
        begun = len(actor.faults.trace)
        gone = Meanwhile(begun + number, lambda first=first, root=world.root: _lose_the_pack(root, first))
        gone.trace = actor.faults.trace
        actor.faulty.faults = gone
        world.damaged.update(world.acknowledged)  # they refer to it
        actor.save_silently()
        since = actor.faults.trace[begun:]
        looked = next(n for n, operation in enumerate(since, 1) if operation.startswith(f"stat packs/{first}/"))
        if number > looked:  # from here on only the parent's being the newest protects it
            break
        sent_all += 1
        assert any("all of" in said for said in world.said), f"gone before {since[number - 1]}"
        world.check()
        assert world.acknowledged[-1] not in world.damaged
        recover(world)
        shutil.rmtree(world.root)
        number += 1
    assert sent_all >= 4


def _lose_the_pack(root: Path, snapshot: str) -> None:
    (root / f"packs/{snapshot}/rank-00000.safetensors").unlink()


# planted bugs: the checker must notice every one of them


def lives(new_run: NewRun, protocol: Protocol) -> Callable[[], object]:
    def scenario() -> None:
        world = World(new_run(), protocol)
        assert Actor(world).live(saves=SAVES) is None
        world.check()

    return scenario


def test_planted_packs_kept_for_ever(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "worth_keeping", dict)
    expect_caught(lives(new_run, REAL), "keeps .* for .* bytes of it")


def test_planted_half_counted_over_all_packs(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def together(places: dict[int, Place]) -> dict[int, Place]:
        packs = {place.pack for place in places.values()}
        live = sum(place.chunk.length for place in places.values())
        return dict(places) if 2 * live >= sum(pack.length - pack.header_length for pack in packs) else {}

    monkeypatch.setattr(save, "worth_keeping", together)
    expect_caught(lives(new_run, REAL), "keeps .* for .* bytes of it")


def test_planted_grandparent_s_packs(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembers everything that it ever sent."""
    known: dict[tuple[str, str], Place] = {}

    def all_candidates(tensors: Sequence[TensorEntry], probes: Sequence[str], previous: Previous) -> dict[int, Place]:
        for entry, _ in previous.tensors.values():
            (chunk,) = entry.chunks
            known[entry.name, chunk.digest] = Place(chunk, previous.packs[chunk.pack])
        # of tensors this small the probe is the digest
        found = [known.get((entry.name, probe)) for entry, probe in zip(tensors, probes, strict=True)]
        return {index: place for index, place in enumerate(found) if place is not None}

    monkeypatch.setattr(save, "candidates", all_candidates)
    expect_caught(lives(new_run, REAL), "refers to .*, which its parent does not name")


def test_planted_same_kind_taken_for_same_bytes(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(self: save._Tensors, previous: Previous) -> dict[int, Place]:
        probes = [previous.tensors[entry.name][0].chunks[0].digest for entry in self.table]
        return worth_keeping(candidates(self.table, probes, previous))

    monkeypatch.setattr(save._Tensors, "unchanged", trusting)
    expect_caught(lives(new_run, REAL), "mixes steps")


def test_planted_digest_of_other_bytes(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes each tensor from one element too early on."""

    def early(spans: Sequence[tuple[int, int]], hashed: Callable[[int], None]) -> Hashing:
        return Hashing([(offset - 4, length) for offset, length in spans], hashed)

    monkeypatch.setattr(save, "is_probed_whole", lambda entry: False)
    monkeypatch.setattr(save, "Hashing", early)
    expect_caught(lives(new_run, REAL), "does not match its digest")


def test_planted_old_packs_not_looked_at(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "_first_gone", lambda *_: None)

    def scenario() -> None:
        world = World(new_run())
        actor = Actor(world)
        actor.start()
        actor.save()
        _lose_the_pack(world.root, world.acknowledged[0])
        world.damaged.update(world.acknowledged)
        actor.save()
        world.check()

    expect_caught(scenario, "I2/I3: .* is missing")
