"""`prune`, `pin` and `unpin`: what they list, what they delete, and what they refuse."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.cli.command import in_process, on_screen, spotckpt
from tests.cli.test_bad_input import fails
from tests.cli.test_looking import ok
from tests.support.checker import Bucket, leftovers
from tests.support.proxy import Proxy, answer


def age(run: Any, seconds: float = 7200.0) -> None:
    """The claims are old enough that nobody is just about to choose; a bucket's times cannot be changed."""
    for path in run.root.rglob("*.json"):
        found = path.stat()
        os.utime(path, (found.st_atime - seconds, found.st_mtime - seconds))


def test_a_dry_run_lists_what_and_why_and_changes_nothing(run):
    before = sorted(Bucket(run.uri).keys(""))
    age(run)
    lines = ok("prune", run.uri, "--keep-last", "1", "--keep-best", "valid/top1:min", "--dry-run").splitlines()
    assert [line.split()[0] for line in lines[1:5]] == [str(one) for one in run.ids]
    assert "kept" in lines[1] and "of the best 1 by valid/top1:min" in lines[1]
    assert "kept" in lines[3] and "attempt 3 continues it" in lines[3]
    assert "kept" in lines[4] and "the newest" in lines[4]
    assert "would be deleted" in lines[5]
    assert sorted(Bucket(run.uri).keys("")) == before
    shown = json.loads(ok("prune", run.uri, "--keep-last", "1", "--dry-run", "--json"))
    done = json.loads(ok("prune", run.uri, "--keep-last", "1", "--json"))
    assert {**done, "dry_run": True} == shown, "it does what it said"
    assert set(shown["pruned"].values()) <= {"none of last=1"}
    kept = {str(one) for one in Bucket(run.uri).snapshots}
    assert kept == set(shown["kept"]) and leftovers(run.uri) == []


def test_a_terminal_shows_every_reason_whole(local_run):
    arguments = ("prune", local_run.uri, "--keep-last", "1", "--keep-best", "valid/top1:min", "--dry-run")
    shown = on_screen(*arguments, columns=80).out
    assert "…" not in shown and max(map(len, shown.splitlines()[:-1])) <= 80
    assert "attempt 3 continues it; attempt 2 may still refer to it" in " ".join(shown.split())


def test_a_metric_that_nothing_was_evaluated_by_is_told(local_run):
    done = in_process("prune", local_run.uri, "--keep-best", "valid/top2:max", "--dry-run")
    assert done.status == 0
    assert done.err.startswith("spotckpt: --keep-best valid/top2:max keeps nothing: ") and done.err.count("\n") == 1


def test_what_is_gone_is_told_as_pruned(local_run):
    age(local_run)
    done = json.loads(ok("prune", local_run.uri, "--keep-last", "1", "--json"))
    assert list(done["pruned"]) == [str(one) for one in local_run.ids[:2]] and done["freed_bytes"] > 0
    for selector in (str(local_run.ids[0]), "step=100"):
        line = fails(36, "show", f"{local_run.uri}@{selector}")
        assert str(local_run.ids[0]) in line and "was pruned" in line
    again = ok("prune", local_run.uri, "--keep-last", "1").splitlines()
    assert again[-1].startswith("0 of 2 snapshots and 0 objects (0 B) deleted")
    ok("ls", local_run.uri)
    ok("verify", local_run.uri)
    assert json.loads(ok("show", "--json", local_run.uri))["lineage"][0] == str(local_run.ids[2])


def test_pins_hold_what_nothing_else_keeps(run):
    age(run)
    assert ok("pin", f"{run.uri}@step=100", "first").strip() == f"{run.ids[0]} is pinned as first"
    assert ok("pin", f"{run.uri}@{run.ids[0]}", "first").strip() == f"{run.ids[0]} is pinned as first"
    assert str(run.ids[3]) in ok("pin", run.uri, "newest")
    assert f"it holds {run.ids[0]}" in fails(22, "pin", run.uri, "first")
    assert [one["pins"] for one in json.loads(ok("ls", "--json", run.uri))["snapshots"]] == [
        *(["first"], [], []),
        ["newest"],
    ]
    assert "periodic, pinned as first" in ok("ls", run.uri)
    kept = json.loads(ok("prune", run.uri, "--keep-last", "1", "--json"))["kept"]
    assert kept[str(run.ids[0])] == "pinned as first"
    assert "the pins are: first, newest" in fails(21, "unpin", run.uri, "second")
    assert str(run.ids[0]) in ok("unpin", run.uri, "first")
    age(run)
    ok("prune", run.uri, "--keep-last", "1")
    if run.root.exists():
        assert run.ids[0] not in [str(one) for one in Bucket(run.uri).snapshots]
        assert fails(36, "pin", f"{run.uri}@{run.ids[0]}", "late")
        assert not (run.root / "pins/late.json").exists(), "a pin of what is gone is taken back"


def test_without_a_rule_only_leftovers_go(local_run):
    lost = local_run.root / f"packs/{str(local_run.ids[0])[:-8]}ffffffff/rank-00000.safetensors"
    lost.parent.mkdir()
    lost.write_bytes(b"half")
    age(local_run)
    done = json.loads(ok("prune", local_run.uri, "--json"))
    assert not done["pruned"] and not done["objects"], "it may still be sent"
    os.utime(lost, (1.0, 1.0))
    done = json.loads(ok("prune", local_run.uri, "--json"))
    assert done["objects"] == {str(lost.relative_to(local_run.root)): "of an upload that was never committed"}
    assert not lost.parent.exists() and len(done["kept"]) == 4


def test_what_a_doctor_could_not_delete_goes_once_it_is_old(local_run):
    old, young, foreign = (local_run.root / "doctor" / name for name in ("0" * 16 + ".bin", "1" * 16 + ".bin", "x.bin"))
    old.parent.mkdir()
    for path in (old, young, foreign):
        path.write_bytes(b"")
    for path in (old, foreign):
        os.utime(path, (1.0, 1.0))
    assert in_process("prune", local_run.uri).status == 0
    assert (old.exists(), young.exists(), foreign.exists()) == (False, True, True)


def test_old_uploads_of_attempts_that_are_over_are_given_up(s3_env):
    """moto says of every upload that it was begun in 2010."""
    run = s3_run(s3_env)
    keys = [f"run/packs/{run.ids[place]}/rank-00001.safetensors" for place in (0, 3)] + ["run/packs/strange", "other/x"]
    for key in keys:
        s3_env.client.create_multipart_upload(Bucket=s3_env.bucket, Key=key)
    seen = json.loads(ok("prune", s3_env.uri, "--dry-run", "--json"))
    done = json.loads(ok("prune", s3_env.uri, "--json"))
    assert seen["unfinished_uploads"] == done["unfinished_uploads"] == [keys[0].removeprefix("run/")]
    assert sorted(s3_env.uploads()) == sorted(keys[1:])


def test_young_uploads_stay(seaweed_env):
    run = s3_run(seaweed_env)
    key = f"run/packs/{run.ids[0]}/rank-00001.safetensors"
    seaweed_env.client.create_multipart_upload(Bucket=seaweed_env.bucket, Key=key)
    assert json.loads(ok("prune", seaweed_env.uri, "--json"))["unfinished_uploads"] == []
    assert seaweed_env.uploads() == [key]


def test_a_store_that_cannot_list_uploads_is_no_error(s3_env, monkeypatch):
    s3_run(s3_env)
    with Proxy(s3_env.url) as proxy:
        proxy.on("GET", "uploads", answer(501, b"<Error><Code>NotImplemented</Code></Error>"), times=100)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        done = in_process("prune", s3_env.uri)
    assert done.status == 0
    assert "unfinished uploads cannot be swept" in done.err and "NotImplemented" in done.err
    assert len([seen for seen in proxy.seen if "uploads" in seen.path]) == 1, "what it cannot do is not tried again"


def s3_run(env):
    from spotckpt.store.open import open_store
    from tests.cli.conftest import MadeRun
    from tests.cli.runs import three_attempts

    store = open_store(env.uri)
    return MadeRun(env.uri, store, three_attempts(store))


def test_denied(s3_env, monkeypatch):
    run = s3_run(s3_env)
    with Proxy(s3_env.url) as proxy:
        proxy.on("POST", "delete", answer(403, b"<Error><Code>AccessDenied</Code></Error>"), times=100)
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
            assert "s3:DeleteObject" in fails(24, "prune", s3_env.uri, "--keep-last", "1", "--abandoned")
    assert len(Bucket(run.uri).snapshots) == 4 and not s3_env.keys("run/pruned/")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--keep-every", "5 apples"), 11, "5 apples"),
        (("--keep-best", "top1"), 11, "top1"),
        (("--keep-last", "0"), 64, "keep-last"),
    ],
)
def test_a_rule_that_cannot_be(local_run, arguments, status, words):
    assert words in fails(status, "prune", local_run.uri, *arguments)


def test_a_name_or_an_address_that_cannot_be(local_run):
    assert "cannot be a key" in fails(10, "pin", local_run.uri, "../x")
    assert "names one snapshot" in fails(10, "prune", f"{local_run.uri}@step=100")
    assert "no run here" in fails(21, "prune", f"{local_run.uri}-none")


def test_nothing_is_deleted_while_a_manifest_cannot_be_read(local_run):
    age(local_run)
    path = local_run.root / f"snapshots/{local_run.ids[1]}.json"
    path.write_bytes(path.read_bytes()[:-9])
    assert str(local_run.ids[1]) in fails(31, "prune", local_run.uri, "--keep-last", "1")
    assert len(list((local_run.root / "snapshots").iterdir())) == 4


def test_another_process_does_the_same(local_run):
    age(local_run)
    done = spotckpt("prune", local_run.uri, "--keep-every", "1000 steps", "--dry-run")
    assert (done.status, done.err) == (0, "")
    assert done.out == ok("prune", local_run.uri, "--keep-every", "1000 steps", "--dry-run")
