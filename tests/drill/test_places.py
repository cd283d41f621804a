"""Where a drill writes, and that nothing of it stays there."""

from __future__ import annotations

import pytest

from spotckpt.drill.places import Prefix, copy_to, describe


def fill(place):
    store = place.store("run")
    store.create("snapshots/a0001-n000000-s00000001-00000000.json", b"{}")
    store.put("packs/a0001-n000000-s00000001-00000000/rank-00000.safetensors", [bytes(1 << 20)])
    return store


def test_a_directory_of_the_users_is_left_as_it_was(tmp_path):
    (tmp_path / "mine").write_text("kept")
    place = Prefix(str(tmp_path), print)
    fill(place)
    assert place.uri.startswith(f"file://{tmp_path}/drill-")
    place.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_bucket_of_the_users_is_left_as_it_was(s3_env):
    said = []
    place = Prefix(f"s3://{s3_env.bucket}/scratch", said.append)
    store = fill(place)
    assert describe(store, "run") == "holds 1 committed snapshots, 1.0 MiB of packs"
    place.stop()
    assert store.list("") == []
    assert said == []


def test_what_a_run_holds_can_be_kept(tmp_path):
    place = Prefix(str(tmp_path / "there"), print)
    copy_to(fill(place), tmp_path / "copy")
    assert (tmp_path / "copy/snapshots/a0001-n000000-s00000001-00000000.json").read_bytes() == b"{}"


def test_two_drills_below_one_address_do_not_meet(tmp_path):
    assert Prefix(str(tmp_path), print).uri != Prefix(str(tmp_path), print).uri


@pytest.mark.parametrize("name", ["uninterrupted", "run"])
def test_a_run_is_named_below_the_prefix(tmp_path, name):
    assert Prefix(str(tmp_path), print).run_uri(name).endswith(f"/{name}")
