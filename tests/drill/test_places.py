"""Where a drill writes, and that nothing of it stays there."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from spotckpt.drill.places import Bucket, Prefix, copy_to, describe
from spotckpt.errors import BucketMissing, DrillFailed
from tests.support.imds import running_imds
from tests.support.proxy import Proxy, answer


def fill(place):
    place.start()
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
    assert describe(store, "run") == "holds 1 committed snapshots, 1.0 MB of packs"
    place.stop()
    assert store.list("") == []
    assert said == []


def test_objects_go_also_where_uploads_may_not_be_listed(s3_env, monkeypatch):
    said = []
    with Proxy(s3_env.url) as proxy:
        proxy.on("GET", r"\?.*uploads", answer(403), times=float("inf"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        place = Prefix(f"s3://{s3_env.bucket}/scratch", said.append)
        fill(place)
        place.stop()
    assert s3_env.keys() == []
    assert len(said) == 1
    assert "403" in said[0]


def test_a_bucket_that_is_not_there_is_told_before_anything_is_trained(s3_env):
    said = []
    place = Prefix("s3://no-such-bucket/scratch", said.append)
    with pytest.raises(BucketMissing):
        place.start()
    place.stop()
    assert said == []


def test_a_server_that_speaks_no_s3_is_one_error(tmp_path):
    with running_imds() as other:
        place = Bucket(port=urlsplit(other.endpoint).port, log_path=tmp_path / "log", temporary=tmp_path)
        with pytest.raises(DrillFailed, match="does not answer as one"):
            place.start()
        place.stop()


def test_what_a_run_holds_can_be_kept(tmp_path):
    place = Prefix(str(tmp_path / "there"), print)
    copy_to(fill(place), tmp_path / "copy")
    assert (tmp_path / "copy/snapshots/a0001-n000000-s00000001-00000000.json").read_bytes() == b"{}"


def test_two_drills_below_one_address_do_not_meet(tmp_path):
    assert Prefix(str(tmp_path), print).uri != Prefix(str(tmp_path), print).uri


@pytest.mark.parametrize("name", ["uninterrupted", "run"])
def test_a_run_is_named_below_the_prefix(tmp_path, name):
    assert Prefix(str(tmp_path), print).run_uri(name).endswith(f"/{name}")
