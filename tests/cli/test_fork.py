"""`spotckpt fork`: what it writes and leaves alone, where it refuses, and what the other verbs make of a fork."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spotckpt.cli.fork import _assignment
from spotckpt.errors import Corrupt, Denied
from spotckpt.snapshot.catalog import read_catalog, read_run
from spotckpt.snapshot.choose import choose
from spotckpt.snapshot.descent import path_between, uri_at
from spotckpt.snapshot.fetch import read_manifest, read_part, read_tensors
from spotckpt.snapshot.keys import RUN_KEY, SnapshotId
from spotckpt.snapshot.open import at, open_run_store
from tests.cli.command import in_process, on_terminal
from tests.cli.test_bad_input import fails
from tests.cli.test_looking import ok
from tests.cli.test_prune import age
from tests.support.checker import Bucket
from tests.support.proxy import Proxy, answer

DATA_BYTES = 4 * (2 * 256 * 64 + 256)


def sibling(uri: str, name: str = "fork") -> str:
    return f"{uri.rpartition('/')[0]}/{name}"


def whole(uri: str) -> None:
    assert json.loads(ok("verify", uri, "--json"))["whole"] is True


def values(uri: str) -> set[float]:
    """Of all tensors of the newest snapshot."""
    with closing(open_run_store(uri)) as store:
        catalog = read_catalog(store)
        one = choose(catalog, catalog.highest + 1).candidates[0]
        bodies = read_tensors(store, read_part(store, read_manifest(store, one)))
    return {float(value) for body in bodies.values() for value in np.unique(np.frombuffer(body, "<f4"))}


def test_tensors_are_shared_and_no_byte_of_them_is_read_or_sent(s3_env, monkeypatch):
    from tests.cli.test_prune import s3_run

    run, to = s3_run(s3_env), sibling(s3_env.uri)
    with Proxy(s3_env.url) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        shown = json.loads(ok("fork", f"{run.uri}@step=157", to, "--set", "lr=0.01", "--json"))
        packs = [seen for seen in proxy.seen if ".safetensors" in seen.path]
        sent = sum(int(seen.headers.get("content-length", 0)) for seen in proxy.seen)
    assert {seen.method for seen in packs} == {"HEAD"}, "only asked whether they are there"
    assert sent < 8192 and shown["data_bytes"] == DATA_BYTES and shown["uploaded_bytes"] < 4096
    assert shown["forked_from"] == [
        {"run_id": read_run(run.store).run_id, "uri": run.uri, "snapshot": str(run.ids[1]), "path": "../run"}
    ]
    assert values(to) == {157.0}
    whole(to)


def test_what_the_others_show_of_it(run):
    to = sibling(run.uri)
    said = ok("fork", f"{run.uri}@step=157", to, "--set", "lr=0.01", "--set", "name=wide")
    assert f"{to} begins with {run.uri}@{run.ids[1]}" in said
    assert "132.1 kB shared, and pinned there" in said
    assert "lr: 0.05 → 0.01" in said and 'name: "resnet" → "wide"' in said
    listed = ok("ls", to)
    assert f'forked from {run.uri}@{run.ids[1]}, with lr=0.01, name="wide"' in listed
    assert " fork " in listed
    (row,) = json.loads(ok("ls", to, "--json"))["snapshots"]
    assert (row["reason"], row["finished"], row["step"], row["parent"]) == ("fork", False, 157, None)
    detail = ok("show", to)
    assert f"descendsfrom{run.uri}@{run.ids[1]}" in "".join(detail.split())
    assert "0.05, from here on 0.01" in detail
    assert json.loads(ok("show", to, "--json"))["lineage"] == [f"{run.uri}@{run.ids[1]}"]
    assert " notice, forked " in ok("ls", run.uri)
    run_id = json.loads(ok("ls", to, "--json"))["run"]["run_id"]
    assert json.loads(ok("ls", run.uri, "--json"))["snapshots"][1]["pins"] == [f"fork-{run_id}"]
    whole(to)
    assert f"{to}@best" not in ok("show", f"{to}@best=valid/top1:max")


def test_the_parent_s_pruning_leaves_what_a_fork_of_a_fork_needs(local_run):
    to, further = sibling(local_run.uri), sibling(local_run.uri, "further")
    ok("fork", f"{local_run.uri}@step=157", to)
    ok("fork", to, further, "--set", "lr=1")
    assert [one["uri"] for one in json.loads(ok("ls", further, "--json"))["run"]["forked_from"]] == [to, local_run.uri]
    assert json.loads(ok("show", further, "--json"))["lineage"][1] == f"{local_run.uri}@{local_run.ids[1]}"
    age(local_run)
    kept = json.loads(ok("prune", local_run.uri, "--keep-last", "1", "--abandoned", "--json"))["kept"]
    assert kept[str(local_run.ids[1])].startswith("pinned as fork-")
    assert not list(local_run.root.glob(f"packs/{local_run.ids[0]}/*"))
    (middle,) = [one for one in json.loads(ok("ls", to, "--json"))["snapshots"]]
    for uri in (to, further):
        ok("prune", uri, "--keep-last", "1")
        whole(uri)
    assert values(further) == {157.0} and middle["step"] == 157


def test_without_the_right_to_pin_it_refuses_or_copies(s3_env, monkeypatch):
    from tests.cli.test_prune import s3_run

    run, to = s3_run(s3_env), sibling(s3_env.uri)
    before = sorted(Bucket(run.uri).keys(""))
    with Proxy(s3_env.url) as proxy, monkeypatch.context() as patch:
        proxy.on("PUT", "/run/", answer(403, b"<Error><Code>AccessDenied</Code></Error>"), times=100)
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        line = fails(24, "fork", run.uri, to)
        assert "PutObject answered 403" in line and f"{run.uri}/pins/fork-" in line and "--copy" in line
        assert not s3_env.keys("fork/"), "nothing is left there"
        assert "132.1 kB copied" in ok("fork", run.uri, to, "--copy")
    assert sorted(Bucket(run.uri).keys("")) == before
    assert values(to) == {300.0}
    whole(to)


@pytest.mark.parametrize("direction", ["to a directory", "from a directory", "to another bucket"])
def test_elsewhere_only_by_copying(s3_env, moto_server, local_root, monkeypatch, direction):
    from spotckpt.store.open import open_store
    from tests.cli.runs import three_attempts

    other = f"s3://{moto_server.new_env().bucket}/fork"
    source, to = {
        "to a directory": (s3_env.uri, local_root),
        "from a directory": (local_root, sibling(s3_env.uri)),
        "to another bucket": (s3_env.uri, other),
    }[direction]
    with closing(open_store(source)) as store:
        ids = three_attempts(store)
        assert "not in one bucket" in fails(10, "fork", source, to)
        ok("fork", f"{source}@{ids[0]}", to, "--copy")
        (ancestor,) = read_run(open_run_store(to)).forked_from
        assert (ancestor.uri, ancestor.snapshot, ancestor.path) == (source, str(ids[0]), None)
        store.delete([stat.key for stat in store.list("")])
    whole(to)
    assert values(to) == {100.0}


def test_a_destination_that_is_a_run_is_refused(local_run):
    to = sibling(local_run.uri)
    ok("fork", local_run.uri, to)
    for target in (to, local_run.uri):
        assert "there is a run already" in fails(22, "fork", local_run.uri, target)
        assert "there is a run already" in fails(22, "fork", local_run.uri, target, "--copy")
    assert "names a snapshot" in fails(10, "fork", local_run.uri, f"{to}-2@step=1")
    assert "no run here" in fails(21, "fork", sibling(local_run.uri, "none"), f"{to}-2")
    assert "@step=5 matches nothing" in fails(33, "fork", f"{local_run.uri}@step=5", f"{to}-2")
    assert len(list(local_run.root.glob("pins/*"))) == 1


def test_what_is_no_argument_cannot_be_set(local_run):
    to = sibling(local_run.uri)
    assert "lrr is no argument of the run" in fails(64, "fork", local_run.uri, to, "--set", "lrr=1")
    assert "lr, name" in fails(64, "fork", local_run.uri, to, "--set", "lrr=1")
    assert "is not NAME=VALUE" in fails(64, "fork", local_run.uri, to, "--set", "lr")
    assert not Path(to.removeprefix("file://")).exists() and not list(local_run.root.glob("pins/*"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("3", 3), ("[0.9, 0.95]", [0.9, 0.95]), ("true", True), ("None", None), ("x=y", "x=y"), ("", "")],
)
def test_values_are_json_or_words(text, value):
    found = _assignment(f"name={text}")
    assert found == ("name", value) and type(found[1]) is type(value)


def test_one_that_was_interrupted_is_no_run(local_run):
    to = sibling(local_run.uri)
    ok("fork", local_run.uri, to)
    claim = Path(to.removeprefix("file://")) / "attempts/0001.json"
    claim.unlink()
    for verb in ("ls", "show", "verify", "prune"):
        assert "was not completed" in fails(34, verb, to)
    done = in_process("fork", f"{local_run.uri}@step=100", to)
    assert done.status == 22 and f"another fork, of {local_run.uri}@{local_run.ids[-1]}, was begun there" in done.err
    done = in_process("fork", local_run.uri, to)
    assert done.status == 0 and "going on with a fork" in done.err
    whole(to)


def test_runs_that_move_together_stay_together_and_none_leads_out_of_its_bucket(local_run, tmp_path):
    to = sibling(local_run.uri)
    ok("fork", local_run.uri, to)
    root = local_run.root.parent
    (tmp_path / "elsewhere").mkdir()
    for name in (local_run.root.name, "fork"):
        shutil.move(root / name, tmp_path / "elsewhere" / name)
    whole(f"{tmp_path}/elsewhere/fork")
    shutil.move(tmp_path / "elsewhere" / local_run.root.name, tmp_path / "gone")
    line = fails(31, "verify", f"{tmp_path}/elsewhere/fork")
    assert "forks/" in line and "is missing" in line
    assert uri_at("s3://bucket/a/fork", "../run") == "s3://bucket/a/run"
    for path in ("../../../other/run", "/other/run", ".", "../../.."):
        assert uri_at("s3://bucket/a/fork", path) is None, path
    assert path_between("s3://bucket/a/b/fork", "s3a://bucket/run") == "../../../run"
    assert path_between("s3://bucket/a", "s3://other/a") is path_between("s3://bucket/a", "file:///bucket/a") is None


def test_an_ancestor_s_objects_are_read_and_nothing_else(local_run):
    to = sibling(local_run.uri)
    ok("fork", local_run.uri, to)
    with closing(open_run_store(to)) as store:
        key = next(iter(read_manifest(store, SnapshotId.parse(read_run(store).forked_as)).packs)).key
        assert key.startswith("forks/") and store.exists(key)
        for act in (
            lambda: store.delete(["run.json", key]),
            lambda: store.create(key, b""),
            lambda: store.put(key, [b""]),
            lambda: store.put_if_absent(key, b""),
        ):
            with pytest.raises(Denied, match="belongs to another run"):
                act()
        assert store.exists("run.json")
        record = read_run(store)
        assert record is not None
        stranger = replace(record, forked_from=(replace(record.forked_from[0], run_id="0" * 16),))
        store.put(RUN_KEY, [stranger.to_bytes()])
    with closing(open_run_store(to)) as store, pytest.raises(Corrupt, match="does not say where the run"):
        store.stat(key)


def test_a_key_is_named_once(local_run):
    """A directory's errors have the whole path already."""
    path = f"{local_run.root}/pins/fork-0.json"
    assert at(local_run.store, path) == path
    assert at(local_run.store, "pins/fork-0.json") == f"{local_run.uri}/pins/fork-0.json"


@pytest.mark.parametrize("options", [(), ("--copy",)], ids=["shared", "copied"])
def test_a_snapshot_that_is_not_whole_begins_nothing(local_run, options):
    to = sibling(local_run.uri, "none")
    pack = local_run.root / "packs" / str(local_run.ids[-1]) / "rank-00000.safetensors"
    pack.write_bytes(pack.read_bytes()[:-1])
    assert " bytes, not " in fails(31, "fork", local_run.uri, to, *options)
    pack.unlink()
    assert fails(31, "fork", local_run.uri, to, *options).endswith(f"{pack} is missing; fork another snapshot")
    assert not Path(to.removeprefix("file://")).exists()
    assert not (local_run.root / "pins").exists()


def test_copying_shows_progress_on_a_terminal(local_run):
    shown = on_terminal("fork", local_run.uri, sibling(local_run.uri), "--copy", columns=80)
    assert shown.status == 0 and "copied" in shown.out
