"""`pull` and `push` as commands: what they make, what they say, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import spotckpt
from spotckpt.moving.contents import fingerprint
from spotckpt.moving.push import ATTEMPT
from spotckpt.snapshot.catalog import read_catalog
from spotckpt.snapshot.fetch import read_manifest
from spotckpt.snapshot.history import read_history
from spotckpt.store.open import open_store
from tests.cli.command import in_process
from tests.moving.made import FILES, contents, found_in, model, run_of, stepped, weights
from tests.moving.old import old_file
from tests.moving.processes import on_terminal
from tests.support.checker import check


def ok(*arguments: str) -> str:
    done = in_process(*arguments)
    assert (done.status, done.err) == (0, "")
    return done.out


@pytest.mark.parametrize("name", FILES)
def test_there_and_back(name, s3_env, tmp_path):
    """A run becomes a file and the file a run that holds the same, named by the same digest."""
    uri, path = s3_env.uri, tmp_path / name
    manifest = run_of(uri, given := contents())
    assert ok("pull", uri, str(path)) == f"{path}: step 5 of {uri} ({manifest.snapshot})\n"
    assert fingerprint(found_in(path)) == fingerprint(given)
    said = ok("push", str(path), f"{uri}2")
    again = f"{uri}2@{manifest.snapshot}"
    assert said == f"{again}: model, optimizer, fresh; {len(given.vars)} vars; step 5\n"
    check(f"{uri}2", [str(manifest.snapshot)])
    store = open_store(f"{uri}2")
    found = read_manifest(store, manifest.snapshot)
    assert (found.epoch, found.arguments, found.environment) == (1, {"lr": 0.1}, {"torch": "2"})
    assert found.latest["train/loss"] == 0.2 and found.best["train/loss:min"].step == 4
    history = read_history(store, found)
    assert history["valid"]["own"].given and not history["train"]["loss"].given
    assert np.isnan(history["valid"]["top1"][0]) and history["valid"]["confusion"][0].tolist() == [[5, 1], [0, 4]]
    assert read_catalog(store).heartbeats[ATTEMPT].released
    loaded = spotckpt.load(again)
    assert loaded["vars"]["class_to_idx"] == {"cat": 0, "dog": 1}
    assert loaded["optimizer"]["state"].keys() == given.objects["optimizer"]["state"].keys()


def test_only_the_bytes_of_one_object_are_read(tmp_path):
    uri = f"file://{tmp_path}/run"
    given = contents()
    given.objects["other"], given.kinds["other"] = weights(1 << 16), "module"
    run_of(uri, given)
    [pack] = (tmp_path / "run").rglob("rank-*.safetensors")
    data = bytearray(pack.read_bytes())
    start = data.index(b"other/layer0.weight")
    at = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["other/layer0.weight"]["data_offsets"][0]
    data[8 + int.from_bytes(data[:8], "little") + at] ^= 1  # nobody may look at it
    pack.write_bytes(data)
    assert start
    ok("pull", uri, str(tmp_path / "m.pt"), "--only", "model")
    model().load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    ok("pull", uri, str(tmp_path / "two.pt"), "--only", "model", "--only", "optimizer")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert list(two)[:2] == ["model", "optimizer"] and "fresh" not in two
    stepped(model()).load_state_dict(two["optimizer"])
    assert in_process("pull", uri, str(tmp_path / "o.pt"), "--only", "other").status == 31


def test_what_was_pulled_in_part_can_be_pushed(tmp_path):
    uri = f"file://{tmp_path}/run"
    run_of(uri)
    for only, objects in ((["model"], {"model"}), (["model", "optimizer"], {"model", "optimizer"})):
        name = f"{len(only)}.pt"
        ok("pull", uri, str(tmp_path / name), *(word for one in only for word in ("--only", one)))
        ok("push", str(tmp_path / name), f"{uri}-{name}")
        assert spotckpt.load(f"{uri}-{name}").keys() == objects | {"vars"}


def test_what_is_not_there_is_named(tmp_path):
    uri = f"file://{tmp_path}/run"
    run_of(uri)
    done = in_process("pull", uri, str(tmp_path / "m.pt"), "--only", "modle")
    assert done.status == 64 and "does not hold modle; it holds model, optimizer, fresh" in done.err
    done = in_process("pull", f"{uri}@step=7", str(tmp_path / "m.pt"))
    assert done.status == 33
    done = in_process("pull", uri, str(tmp_path / "m.txt"))
    assert done.status == 64 and "--format" in done.err
    done = in_process("push", str(tmp_path / "none.pt"), f"{uri}2")
    assert done.status == 64 and "none.pt: No such file or directory" in done.err
    done = in_process("push", str(tmp_path), f"{uri}2")
    assert done.status == 64 and ".metadata" in done.err
    done = in_process("push", str(tmp_path / "m.pt"), f"{uri}@step=5")
    assert done.status == 10
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_pushing_again_what_is_there_is_no_error(tmp_path):
    run_of(f"file://{tmp_path}/a")
    ok("pull", f"file://{tmp_path}/a", str(tmp_path / "m.pt"))
    first = ok("push", str(tmp_path / "m.pt"), f"file://{tmp_path}/b")
    before = sorted(one.read_bytes() for one in (tmp_path / "b").rglob("*.json"))
    done = in_process("push", str(tmp_path / "m.pt"), f"file://{tmp_path}/b")
    assert (done.status, done.out) == (0, first) and "is there already" in done.err
    assert before == sorted(one.read_bytes() for one in (tmp_path / "b").rglob("*.json"))


def test_the_old_packages_history_is_a_history(tmp_path):
    attributes = {
        "iteration": 25,
        "model_state_dict": model().state_dict(),
        "optimizer_state_dict": stepped(model()).state_dict(),
        "train": {"top1": {0: 80, 1: 85}, "loss": {0: np.float64(1.5)}},
        "loss": {0: 1.0, 1: float("nan")},
        "class_to_idx": {"cat": 0},
        "by_name": {"a": 1.0},
        "prefix_name": "checkpoint",
    }
    old_file(tmp_path / "c.pth.tar", attributes)
    ok("push", str(tmp_path / "c.pth.tar"), f"file://{tmp_path}/run")
    store = open_store(f"file://{tmp_path}/run")
    [snapshot] = read_catalog(store).snapshots
    history = read_history(store, read_manifest(store, snapshot))
    assert list(history["train"]["top1"]) == [80, 85] and history["train"]["top1"].steps == [0, 1]
    assert list(history["train"]["loss"]) == [1.5] and np.isnan(history["running"]["loss"][1])
    found = spotckpt.load(f"file://{tmp_path}/run")
    assert found.keys() == {"model", "optimizer", "vars"}
    assert found["vars"] == {"class_to_idx": {"cat": 0}, "by_name": {"a": 1.0}}


def test_a_dictionary_of_others_is_a_run(tmp_path):
    saved = {"state_dict": model().state_dict(), "epochs": 3, "class_to_idx": {"cat": 0}, "note": "it's"}
    torch.save(saved, tmp_path / "checkpoint.pth")
    assert "model; 3 vars; step 0" in ok("push", str(tmp_path / "checkpoint.pth"), f"file://{tmp_path}/run")
    found = spotckpt.load(f"file://{tmp_path}/run")
    assert torch.equal(found["model"]["0.weight"], saved["state_dict"]["0.weight"])
    assert found["vars"] == {"epochs": 3, "class_to_idx": {"cat": 0}, "note": "it's"}


def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(tmp_path, monkeypatch):
    uri, path = f"file://{tmp_path}/run", str(tmp_path / "m.pt")
    run_of(uri)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLUMNS", raising=False)  # which would count for more than the terminal's own width
    shown = on_terminal("pull", uri, path, columns=80)
    assert "downloading" in shown and "writing" in shown and f"{path}: step 5" in shown.replace("\r\n", "")
