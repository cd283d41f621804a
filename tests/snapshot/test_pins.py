"""Pins: what they hold, and when they go."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotckpt.errors import AlreadyExists, Corrupt, FutureFormat, NotFound, Pruned
from spotckpt.snapshot.keys import SnapshotId, manifest_key, tombstone_key
from spotckpt.snapshot.pins import pin, read_pins, unpin
from spotckpt.snapshot.records import Tombstone
from spotckpt.store.base import Store
from tests.snapshot.bucket import begin, local_store, raises_naming, save, sid
from tests.snapshot.test_envelope import sealed


@pytest.fixture
def snapshot() -> SnapshotId:
    return sid(1, 1)


@pytest.fixture
def store(tmp_path: Path, snapshot: SnapshotId) -> Store:
    store = local_store(tmp_path)
    begin(store, 1)
    save(store, snapshot)
    return store


def held(store: Store) -> dict[str, str]:
    return {name: found.snapshot for name, found in read_pins(store).items()}


def test_a_name_holds_one_snapshot_until_it_is_taken_away(store: Store, snapshot: SnapshotId) -> None:
    for _ in range(2):
        pin(store, "paper", snapshot)
    save(store, sid(1, 2))
    with raises_naming(AlreadyExists, f"it holds {snapshot}", "unpin paper"):
        pin(store, "paper", sid(1, 2))
    assert held(store) == {"paper": str(snapshot)}
    assert unpin(store, "paper") == snapshot
    assert held(store) == {}
    with pytest.raises(NotFound):
        unpin(store, "paper")


def test_what_is_not_there_is_not_held(store: Store, snapshot: SnapshotId) -> None:
    with pytest.raises(Corrupt, match="missing"):
        pin(store, "paper", sid(1, 7))
    assert held(store) == {}
    pin(store, "paper", snapshot)
    store.delete([manifest_key(snapshot)])
    store.put(tombstone_key(snapshot), [Tombstone(str(snapshot), 0.0, "none of last=1", "").to_bytes()])
    with pytest.raises(Pruned):
        pin(store, "paper", snapshot)
    assert held(store) == {}


def test_what_is_held_and_cannot_be_read_stays_held(store: Store, snapshot: SnapshotId) -> None:
    """By an older version of spotckpt than wrote it, or damaged: whoever pinned it had it whole."""
    pin(store, "paper", snapshot)
    store.put(manifest_key(snapshot), [sealed(b'{"format":7}')])
    with pytest.raises(FutureFormat):
        pin(store, "paper", snapshot)
    assert held(store) == {"paper": str(snapshot)}
    with pytest.raises(FutureFormat):
        pin(store, "other", snapshot)
    assert held(store) == {"paper": str(snapshot)}
