"""Interrupted transfers: never anything that looks complete, and the next try goes on where they stopped."""

from __future__ import annotations

import random
import re
import shutil
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from spotckpt.errors import AlreadyExists
from spotckpt.moving.contents import Contents, fingerprint
from spotckpt.moving.files import write
from spotckpt.moving.partial import partial
from spotckpt.moving.push import push
from spotckpt.snapshot.arrival import Packs
from spotckpt.snapshot.attempts import claim, ensure_run
from spotckpt.snapshot.catalog import read_catalog
from spotckpt.snapshot.fetch import read_part, verify
from spotckpt.snapshot.records import Holder
from spotckpt.store.base import MIB
from spotckpt.store.open import open_store
from tests.cli.command import in_process
from tests.moving.made import FILES, contents, found_in, run_of, weights
from tests.moving.processes import start
from tests.support.checker import check
from tests.support.proxy import Proxy, Seen, stall_reply, stall_request
from tests.support.servers import S3Env, wait_until

PATIENT = ("--timeout", "600")
"""Whoever is to be killed does not give up before, however slow the machine is."""


def large(num_bytes: int, tensors: int = 1) -> Contents:
    return Contents({"model": weights(num_bytes, tensors)}, {"model": "module"}, run={"step": 0}, step=7)


def killed(process: BaseProcess) -> None:
    process.kill()  # nothing if it has ended


def asked(seen: Seen) -> tuple[int, int]:
    """The first byte of a range, and the one after it; (0, 0) of what is no range."""
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers.get("range", ""))
    return (0, 0) if found is None else (int(found[1]), int(found[2]) + 1)


def test_a_killed_pull_goes_on_where_it_stopped(seaweed_env: S3Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One tensor alone, so that what is gone on with is a part of a tensor."""
    size = 48 * MIB
    manifest = run_of(seaweed_env.uri, large(size))
    path = tmp_path / "m.safetensors"
    with Proxy(seaweed_env.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        proxy.on("GET", r"safetensors", stall_reply(MIB), times=99, when=lambda seen: asked(seen)[0] >= 32 * MIB)
        process = start(tmp_path / "said", "pull", seaweed_env.uri, str(path), *PATIENT)
        journal = tmp_path / ".m.safetensors.spotckpt-part" / "journal"
        there = lambda: journal.exists() and len(journal.read_text().splitlines()) == 3  # noqa: E731
        wait_until(there, timeout_s=60, what="two pieces")
        killed(process)
        process.join()
        assert not path.exists()
        proxy.clear()
        first = len(proxy.seen)
        again = start(tmp_path / "said", "pull", seaweed_env.uri, str(path))
        again.join()
        assert again.exitcode == 0, (tmp_path / "said").read_text()
        ranges = {asked(seen) for seen in proxy.seen[first:] if "safetensors" in seen.path}
    assert "going on where it stopped: 33.6 MB of 50.3 MB are there" in (tmp_path / "said").read_text()
    assert sum(end - start for start, end in ranges) == manifest.data_bytes - 32 * MIB
    assert torch.equal(found_in(path).objects["model"]["layer0.weight"], weights(size)["layer0.weight"])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.safetensors", "said"]


def test_a_killed_push_goes_on_where_it_stopped(seaweed_env: S3Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "m.pt"
    write(large(48 * MIB), path, "pt")
    with Proxy(seaweed_env.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        proxy.on("PUT", "partNumber=[34]", stall_request(1), times=99)
        process = start(tmp_path / "said", "push", str(path), seaweed_env.uri, *PATIENT)
        proxy.wait_for("PUT", "partNumber=3", timeout_s=60)
        wait_until(lambda: stored_parts(seaweed_env) >= 2, timeout_s=60, what="two parts")
        killed(process)
        process.join()
        store = open_store(seaweed_env.uri, environment=seaweed_env.environment)
        assert store.list("") == [one for one in store.list("") if one.key == "run.json"]
        proxy.clear()
        first = len(proxy.seen)
        again = start(tmp_path / "said", "push", str(path), seaweed_env.uri)
        again.join()
        assert again.exitcode == 0, (tmp_path / "said").read_text()
        parts = {seen.path for seen in proxy.seen[first:] if seen.method == "PUT" and "partNumber" in seen.path}
    assert len(parts) == 2
    assert seaweed_env.uploads() == []
    [snapshot] = read_catalog(store).snapshots
    assert verify(store, snapshot).problems == ()


def stored_parts(env: S3Env) -> int:
    """How many parts of unfinished uploads the server has, asked with boto3."""
    found = 0
    for one in env.client.list_multipart_uploads(Bucket=env.bucket).get("Uploads", []):
        with suppress(
            env.client.exceptions.NoSuchUpload
        ):  # given up meanwhile: a try that came too early for its parts
            listed = env.client.list_parts(Bucket=env.bucket, Key=one["Key"], UploadId=one["UploadId"])
            found += len(listed.get("Parts", []))
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_pull_killed_anywhere_never_looks_complete(name, tmp_path):
    uri = f"file://{tmp_path}/run"
    given = contents(vars={"w": weights(8 * MIB, 64)})
    run_of(uri, given)
    path, draw = tmp_path / "out" / name, random.Random(name)
    path.parent.mkdir()
    lasted = 0.6
    for turn in range(6):
        process = start(tmp_path / "said", "pull", uri, str(path))
        process.join(draw.uniform(0, lasted) if turn < 5 else 60)
        killed(process)
        process.join()
        if path.exists():
            assert fingerprint(found_in(path)) == fingerprint(given)
            break
    assert path.exists(), (tmp_path / "said").read_text()
    if not path.is_dir():  # killed just after the file got its name: what is left beside it goes with the next pull
        assert in_process("pull", uri, str(path)).status == 0
        assert [one.name for one in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", FILES)
def test_a_pulled_file_is_whole_from_the_moment_when_it_is_there(name, tmp_path):
    uri, path = f"file://{tmp_path}/run", tmp_path / "out" / name
    given = large(24 * MIB, 4)
    run_of(uri, given)
    path.parent.mkdir()
    process = start(tmp_path / "said", "pull", uri, str(path))
    while not path.exists() and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert fingerprint(found_in(path)) == fingerprint(given)


def test_a_push_killed_anywhere_never_looks_complete(tmp_path):
    path, draw = tmp_path / "m.pt", random.Random(5)
    write(contents(vars={"w": weights(8 * MIB, 64)}), path, "pt")
    uri = f"file://{tmp_path}/run"
    for turn in range(8):
        process = start(tmp_path / "said", "push", str(path), uri)
        process.join(draw.uniform(0.05, 0.5) if turn < 7 else 60)
        killed(process)
        process.join()
        store = open_store(uri)
        for snapshot in read_catalog(store).snapshots:
            assert verify(store, snapshot).problems == ()
    assert process.exitcode == 0, (tmp_path / "said").read_text()
    check(uri, [str(one) for one in read_catalog(store).snapshots])
    assert read_catalog(store).heartbeats[1].released


@pytest.mark.parametrize("cut", ["no claim", "no manifest", "no heartbeat"])
def test_a_push_that_ended_at_its_end_is_finished_by_the_next(cut, tmp_path):
    uri, root = f"file://{tmp_path}/run", tmp_path / "run"
    manifest = run_of(uri)
    (root / "attempts/0001.heartbeat.json").unlink()
    if cut != "no heartbeat":
        (root / f"snapshots/{manifest.snapshot}.json").unlink()
    if cut == "no claim":
        shutil.rmtree(root / "attempts")
    assert run_of(uri).snapshot == manifest.snapshot
    check(uri, [str(manifest.snapshot)])
    assert read_catalog(open_store(uri)).heartbeats[1].last_id == manifest.snapshot


def test_a_push_into_a_run_changes_nothing(tmp_path):
    uri = f"file://{tmp_path}/run"
    run_of(uri)
    before = {one: one.read_bytes() for one in tmp_path.rglob("*.json")}
    write(contents(step=6), tmp_path / "other.pt", "pt")
    done = in_process("push", str(tmp_path / "other.pt"), uri)
    assert (done.status, done.out) == (22, "") and "there is a run already" in done.err
    assert before == {one: one.read_bytes() for one in tmp_path.rglob("*.json")}


def test_a_training_that_began_meanwhile_keeps_the_run(tmp_path):
    uri = f"file://{tmp_path}/run"
    store = open_store(uri)

    def begin(what, total, there):
        if what == "uploading":
            ensure_run(store)
            claim(store, 1, Holder(host="other"), "newest")
        return lambda count: None

    with pytest.raises(AlreadyExists, match="there is a run already"):
        push(store, contents(), name="f", begin=begin, say=lambda text: None)
    assert not read_catalog(store).snapshots


def test_a_partial_file_that_lies_is_found_out(tmp_path):
    """The journal says that bytes are there which a power failure took."""
    uri = f"file://{tmp_path}/run"
    given = contents()
    part = read_part(open_store(uri), run_of(uri, given))
    rows = [row for row, one in enumerate(part.tensors) if not one.name.startswith("run/metrics")]
    lines = "".join(f"{row} 0 {part.tensors[row].size_bytes}\n" for row in rows)
    with partial(tmp_path / "m.pt", part, rows) as found:
        identity, size = found._identity.decode(), found.size_bytes
    directory = tmp_path / ".m.pt.spotckpt-part"
    directory.mkdir()
    (directory / "data").write_bytes(bytes(size))
    (directory / "journal").write_text(identity + lines)
    done = in_process("pull", uri, str(tmp_path / "m.pt"))
    assert done.status == 0 and "going on where it stopped" in done.err
    assert fingerprint(found_in(tmp_path / "m.pt")) == fingerprint(given)
    assert not directory.exists()


def test_of_two_pulls_to_one_file_the_second_is_refused(tmp_path):
    uri = f"file://{tmp_path}/run"
    part = read_part(open_store(uri), run_of(uri))
    with partial(tmp_path / "m.pt", part, [0]):
        done = in_process("pull", uri, str(tmp_path / "m.pt"))
        assert done.status == 64 and "another pull" in done.err
    assert in_process("pull", uri, str(tmp_path / "m.pt")).status == 0


def test_another_snapshots_partial_file_is_not_taken_up(tmp_path):
    first = run_of(f"file://{tmp_path}/a", contents(vars={"other": torch.zeros(9)}))
    second = run_of(f"file://{tmp_path}/b", given := contents(vars={"other": torch.ones(9)}))
    store = open_store(f"file://{tmp_path}/a")
    part = read_part(store, first)
    rows = [row for row, one in enumerate(part.tensors) if not one.name.startswith("run/metrics")]
    with pytest.raises(KeyboardInterrupt), partial(tmp_path / "m.pt", part, rows) as found:
        found.fill(Packs(store, part), lambda count: None)
        raise KeyboardInterrupt
    assert (tmp_path / ".m.pt.spotckpt-part").exists()
    done = in_process("pull", f"file://{tmp_path}/b", str(tmp_path / "m.pt"))
    assert (done.status, done.err) == (0, "")
    assert fingerprint(found_in(tmp_path / "m.pt")) == fingerprint(given)
    assert second.data_bytes == first.data_bytes


def test_a_damaged_snapshot_is_not_pulled(tmp_path):
    uri = f"file://{tmp_path}/run"
    run_of(uri)
    [pack] = (tmp_path / "run").rglob("rank-*.safetensors")
    data = bytearray(pack.read_bytes())
    data[-5] ^= 1
    pack.write_bytes(data)
    done = in_process("pull", uri, str(tmp_path / "m.pt"))
    assert done.status == 31 and "does not match its digest" in done.err
    assert not (tmp_path / "m.pt").exists()
