"""`ls`, `show` and `verify` on a whole run: what they show, to people and to programs, and what they do not read."""

from __future__ import annotations

import json
import shutil

import pytest

from spotckpt.snapshot.keys import SnapshotId
from tests.cli.command import in_process, on_screen, on_terminal, plain, spotckpt
from tests.cli.runs import TENSORS, TREE, begin, save


def ok(*arguments: str) -> str:
    done = in_process(*arguments)
    assert (done.status, done.err) == (0, "")
    return done.out


def test_ls_shows_attempts_and_snapshots(run):
    lines = ok("ls", run.uri).splitlines()
    assert lines[0].startswith(run.uri)
    attempts = [line.split() for line in lines[3:6]]
    assert [(row[0], row[1], row[-1]) for row in attempts] == [
        ("1", "released", "2"),
        ("2", "stale", "1"),
        ("3", "live", "1"),
    ]
    assert str(run.ids[1]) in lines[4]
    shown = lines[8:]
    assert [line.split()[0] for line in shown] == [str(one) for one in run.ids]
    assert shown[1].split()[1:4] == ["157", "1", "notice"]
    assert "132.1 kB" in shown[1]
    assert "valid/top1 0.157" in shown[1]


def test_ls_json(run):
    shown = json.loads(ok("ls", "--json", run.uri))
    assert [one["snapshot"] for one in shown["snapshots"]] == [str(one) for one in run.ids]
    assert shown["snapshots"][1]["reason"] == "notice"
    assert shown["snapshots"][1]["parent"] == str(run.ids[0])
    assert shown["snapshots"][1]["latest"]["valid/top1"] == 0.157
    assert [one["state"] for one in shown["attempts"]] == ["released", "stale", "live"]
    assert shown["attempts"][2]["continues"] == str(run.ids[2])


def test_another_process_says_the_same(run):
    for verb in ("show",) if run.root.exists() else ("ls", "verify"):
        done = spotckpt(verb, "--json", run.uri)
        assert (done.status, done.err) == (0, "")
        assert json.loads(done.out) == json.loads(ok(verb, "--json", run.uri))


def test_ls_last(local_run):
    lines = ok("ls", "--last", "1", local_run.uri).splitlines()
    assert "3 older snapshots are not shown (--last)" in lines
    assert lines[-1].startswith(str(local_run.ids[-1]))


@pytest.mark.parametrize(
    ("selector", "place"),
    [("", 3), ("@newest", 3), ("@step=157", 1), ("@step<=199", 1), ("@best=valid/top1:min", 0), ("@{id}", 2)],
)
def test_show_finds_the_snapshot_that_is_meant(local_run, selector, place):
    shown = json.loads(ok("show", "--json", local_run.uri + selector.format(id=local_run.ids[2])))
    assert shown["snapshot"] == str(local_run.ids[place])
    assert shown["lineage"] == [str(one) for one in reversed(local_run.ids[:place])]


def test_a_selector_that_a_restart_has_followed_still_shows_what_it_says(local_run):
    begin(local_run.store, 4, selector="step=157", base=local_run.ids[1], consumed=("step=157",))
    newest = save(local_run.store, SnapshotId.new(4, 0, 180), parent=local_run.ids[1])
    assert json.loads(ok("show", "--json", local_run.uri))["snapshot"] == str(newest)
    assert json.loads(ok("show", "--json", f"{local_run.uri}@step=157"))["snapshot"] == str(local_run.ids[1])


def test_show_has_everything(run):
    lines = ok("show", run.uri).splitlines()
    text = "\n".join(lines)
    assert lines[0] == f"{run.uri}@{run.ids[-1]}"
    for words in (
        "step 300, epoch 3",
        "(periodic)",
        str(run.ids[0]),
        "train/loss",
        "-inf! at 3",
        "torch",
        "lr ",
        "vars.class_to_idx.dog",
        "[red]not markup[/red]",
    ):
        assert words in text
    for name, shape in TENSORS.items():
        [line] = [line for line in lines if line.startswith(f"{name} ")]
        assert " x ".join(map(str, shape)) in line


def test_show_prints_keys_then_tensors_then_the_rest(local_run, tmp_path):
    """As `ckpt.keys()` of a file would, in the order in which one looks at a checkpoint."""
    lines = ok("show", local_run.uri).splitlines()
    assert lines[1] == "dict_keys(['model', 'optimizer', 'vars', 'history', 'step', 'epoch', 'spotckpt'])"
    text = "\n".join(lines)
    places = [text.index(word) for word in ("dict_keys", "\nKEY ", "VALUES", "METRIC", "ENVIRONMENT", "LINEAGE")]
    assert places == sorted(places)
    assert json.loads(ok("show", "--json", local_run.uri))["keys"][:2] == ["model", "optimizer"]


def test_show_json_has_everything_and_no_nan(run):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    shown = json.loads(ok("show", "--json", run.uri), parse_constant=refuse)
    assert [(one["name"], tuple(one["shape"])) for one in shown["tensors"]] == list(TENSORS.items())
    assert shown["state"] == [TREE]
    assert shown["best"]["train/loss:min"]["value"] == "-inf"
    assert shown["arguments"] == {"lr": 0.05, "name": "resnet"}


def test_show_never_reads_a_tensor(local_run):
    for pack in local_run.root.rglob("*.safetensors"):
        pack.unlink()
    assert "model.fc.weight" in ok("show", local_run.uri)


def test_verify_reads_all_snapshots(run):
    lines = ok("verify", run.uri).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [str(one) for one in run.ids]
    assert all(line.endswith("whole") for line in lines[1:])


def test_verify_one(local_run):
    shown = json.loads(ok("verify", "--json", f"{local_run.uri}@step=157"))
    assert shown["whole"] is True
    [one] = shown["snapshots"]
    assert one["snapshot"] == str(local_run.ids[1])
    assert one["read_bytes"] == 4 * (2 * 256 * 64 + 256)


def test_verify_of_one_ignores_the_others(local_run):
    shutil.rmtree(local_run.root / "packs" / str(local_run.ids[0]))
    ok("verify", f"{local_run.uri}@newest")
    assert in_process("verify", local_run.uri).status == 31


def test_verify_shows_its_progress_on_a_terminal_only(local_run):
    assert "checking" in on_terminal("verify", local_run.uri).out
    assert "checking" not in ok("verify", local_run.uri)


@pytest.mark.parametrize("verb", ["ls", "show", "verify"])
def test_looking_changes_nothing(local_run, verb):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in local_run.root.rglob("*")}

    before = state()
    ok(verb, local_run.uri)
    assert state() == before


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
@pytest.mark.parametrize("verb", ["ls", "show", "verify"])
def test_no_line_is_wider_than_the_terminal(local_run, verb, columns):
    """But for the address and the keys, which are there to be copied."""
    lines = on_screen(verb, local_run.uri, columns=columns).out.splitlines()
    assert max(len(line) for line in lines if not line.startswith(("file://", "dict_keys"))) <= columns


def test_a_real_terminal_s_width_counts(local_run):
    def tensors(shown: str) -> list[str]:
        """The part of what is shown that does not age."""
        lines = shown.splitlines()
        return lines[[line.startswith("KEY") for line in lines].index(True) : lines.index("VALUES")]

    real = tensors(plain(on_terminal("show", local_run.uri, columns=50).out))
    assert real == tensors(on_screen("show", local_run.uri, columns=50).out)
    assert any("…" in line for line in real)


def test_metrics_are_whole_where_there_is_room(local_run):
    for text in (ok("ls", local_run.uri), on_screen("ls", local_run.uri, columns=250).out):
        assert "…" not in text
        assert "train/loss" in text.partition("METRICS")[2] and "valid/top1" in text.partition("METRICS")[2]
    assert "…" in on_screen("ls", local_run.uri, columns=100).out


def test_a_narrow_terminal_shows_ids_whole_and_a_metric(local_run):
    """Other columns are left out for them."""
    for columns, metric in ((60, ""), (80, "valid/top1 0.157")):
        lines = on_screen("ls", local_run.uri, columns=columns).out.splitlines()
        snapshots = lines[[line.startswith("SNAPSHOT") for line in lines].index(True) + 1 :]
        assert [line.split()[0] for line in snapshots] == [str(one) for one in local_run.ids]
        assert metric in snapshots[1]
        assert any(line.split()[-2:].count(str(local_run.ids[1])) for line in lines[: len(lines) - len(snapshots)])


def test_no_line_ends_in_blanks_in_a_pipe(local_run):
    for verb in ("ls", "show", "verify"):
        assert all(line == line.rstrip() for line in ok(verb, local_run.uri).splitlines())
