from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.errors import AddressError
from spotckpt.snapshot.keys import (
    RUN_KEY,
    Key,
    SnapshotId,
    base_key,
    claim_key,
    heartbeat_key,
    manifest_key,
    pack_key,
    parse_key,
    part_key,
    pin_key,
    probe_key,
    shared_key,
    split_shared,
)

ids = st.builds(
    SnapshotId,
    st.integers(1, 10**9),
    st.integers(0, 10**9),
    st.integers(0, 10**12),
    st.text("0123456789abcdef", min_size=8, max_size=8),
)


@given(ids, st.integers(0, 99999))
def test_every_key_is_read_back(snapshot: SnapshotId, rank: int) -> None:
    assert SnapshotId.parse(str(snapshot)) == snapshot
    n = snapshot.attempt
    assert parse_key(manifest_key(snapshot)) == Key("manifest", n, snapshot)
    assert parse_key(pack_key(snapshot, rank)) == Key("pack", n, snapshot, rank=rank)
    assert parse_key(part_key(snapshot, rank)) == Key("part", n, snapshot, rank=rank)
    assert parse_key(claim_key(n)) == Key("claim", n)
    assert parse_key(base_key(n)) == Key("base", n)
    assert parse_key(heartbeat_key(n)) == Key("heartbeat", n)


def test_the_spelling_of_keys() -> None:
    snapshot = SnapshotId(3, 12, 1200, "1f2e3d4c")
    assert str(snapshot) == "a0003-n000012-s00001200-1f2e3d4c"
    assert claim_key(3) == "attempts/0003.json"
    assert base_key(3) == "attempts/0003.base.json"
    assert heartbeat_key(12345) == "attempts/12345.heartbeat.json"
    assert pack_key(snapshot) == "packs/a0003-n000012-s00001200-1f2e3d4c/rank-00000.safetensors"
    assert part_key(snapshot) == "packs/a0003-n000012-s00001200-1f2e3d4c/rank-00000.json"
    assert manifest_key(snapshot) == "snapshots/a0003-n000012-s00001200-1f2e3d4c.json"
    assert parse_key(pin_key("fork-of.x")) == Key("pin", name="fork-of.x")
    assert parse_key(RUN_KEY) == Key("run")
    assert parse_key(probe_key("0123456789abcdef")) == Key("probe")
    assert parse_key("doctor/0123456789ABCDEF.bin") is None


@given(st.lists(ids))
def test_order_is_attempt_then_sequence(found: list[SnapshotId]) -> None:
    assert [(s.attempt, s.sequence) for s in sorted(found)] == sorted((s.attempt, s.sequence) for s in found)


def test_new_ids_differ_and_are_canonical() -> None:
    made = {SnapshotId.new(1, 2, 3) for _ in range(50)}
    assert len(made) == 50
    with pytest.raises(AddressError):
        SnapshotId.new(0, 2, 3)


GOOD_ID = "a0003-n000012-s00001200-1f2e3d4c"
BAD_KEYS = [
    "",
    "/",
    "../run.json",
    "/run.json",
    "run.json/",
    "run.json\n",
    "run.json\0",
    "attempts/3.json",
    "attempts/00003.json",
    "attempts/0000.json",
    "attempts/0003.JSON",
    "attempts/0003.json.tmp",
    "attempts/-003.json",
    "attempts/٠٠٠٣.json",
    "attempts/../0003.json",
    "attempts/0003.other.json",
    f"/snapshots/{GOOD_ID}.json",
    f"snapshots//{GOOD_ID}.json",
    f"snapshots/{GOOD_ID}.json\n",
    f"snapshots/../{GOOD_ID}.json",
    f"snapshots/{GOOD_ID.upper()}.json",
    "snapshots/a00003-n000012-s00001200-1f2e3d4c.json",
    "snapshots/a0003-n000012-s000001200-1f2e3d4c.json",
    "snapshots/a0000-n000012-s00001200-1f2e3d4c.json",
    "snapshots/step-5.json",
    f"packs/{GOOD_ID}/rank-0.json",
    f"packs/{GOOD_ID}/../{GOOD_ID}/rank-00000.json",
    f"packs/{GOOD_ID}/rank-00000.safetensors\0",
    f"packs/{GOOD_ID}/rank-00000.pkl",
    "pins/../x.json",
    "pins/..json",
    "pins/.json",
    "pins/a/b.json",
    "pins/a\0b.json",
]


@pytest.mark.fault(71)
@pytest.mark.parametrize("key", BAD_KEYS, ids=repr)
def test_anything_else_is_not_ours(key: str) -> None:
    assert parse_key(key) is None


@given(st.text())
def test_parse_key_only_knows_what_it_would_write(text: str) -> None:
    found = parse_key(text)
    assert found is None or text in (RUN_KEY, pin_key(found.name) if found.name else "")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "-x", "a" * 101, "é"])
def test_bad_pin_names(name: str) -> None:
    with pytest.raises(AddressError):
        pin_key(name)


@given(ids)
def test_what_lies_in_an_ancestor_has_a_key_of_its_own_that_no_listing_takes_for_ours(snapshot: SnapshotId) -> None:
    key = pack_key(snapshot)
    shared = shared_key("0123456789abcdef", key)
    assert split_shared(shared) == ("0123456789abcdef", key) and split_shared(key) == ("", key)
    assert shared_key("f" * 16, shared) == shared, "an ancestor's ancestor's stays its own"
    assert parse_key(shared) is None


@pytest.mark.parametrize(
    "key",
    [
        "forks/0123456789abcdef/attempts/0001.json",
        "forks/0123456789ABCDEF/packs/x",
        "forks/../packs/x",
        "forks/0123456789abcdef/forks/0123456789abcdef/packs/x",
        "x/forks/0123456789abcdef/packs/x",
    ],
)
def test_no_other_key_leads_into_an_ancestor(key: str) -> None:
    assert split_shared(key) == ("", key) and parse_key(key) is None
    assert parse_key(split_shared("forks/0123456789abcdef/packs/../run.json")[1]) is None
