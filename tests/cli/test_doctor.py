"""`spotckpt doctor` as a user meets it."""

from __future__ import annotations

import json

import pytest

from spotckpt.doctor import rates
from spotckpt.store.base import MIB
from tests.cli.command import in_process, on_terminal
from tests.support.imds import running_imds


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST_BYTES", 32 * MIB)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("SPOTCKPT_SIGTERM_GRACE", "60s")


def checks(out: str) -> dict[str, dict[str, str]]:
    return {row["check"]: row for row in json.loads(out)["rows"]}


def test_the_size_is_the_newest_snapshots(run):
    done = in_process("doctor", run.uri, "--json")
    assert (done.status, done.err) == (0, "")
    document = json.loads(done.out)
    state = checks(done.out)["state"]
    assert document["facts"]["state"]["size_bytes"] > 100_000
    assert str(run.ids[-1]) in state["found"]
    assert document["fits"] is True
    assert not [stat.key for stat in run.store.list("doctor/")]


def test_a_snapshot_may_be_named(run):
    done = in_process("doctor", f"{run.uri}@step=100", "--json")
    assert str(run.ids[0]) in checks(done.out)["state"]["found"]


def test_what_does_not_fit_is_status_1_and_has_a_remedy(local_root):
    done = in_process("doctor", local_root, "--state-bytes", "900TB")
    assert (done.status, done.err) == (1, "")
    lines = {line.partition("  ")[0]: line for line in done.out.splitlines()}
    assert "does not fit" in next(line for line in done.out.splitlines() if line.startswith("spot notice"))
    assert "What to do:" in lines
    assert 'every="' in done.out
    assert "SPOTCKPT_SPOOL=DIRECTORY" in done.out


def test_a_run_that_is_to_be_needs_a_size(local_root):
    done = in_process("doctor", local_root)
    assert done.status == 0
    assert "unknown: there is no run here yet" in done.out
    assert "--state-bytes 10GB" in done.out


def test_a_bucket_that_is_not_there_is_a_row(s3_env):
    done = in_process("doctor", "s3://no-such-bucket/run", "--json")
    assert (done.status, done.err) == (1, "")
    store = checks(done.out)["store"]
    assert store["verdict"] == "does not fit"
    assert "create the bucket" in store["remedy"]


def test_the_metadata_service_is_asked(local_root):
    with running_imds() as imds:
        imds.hop_limit = 1
        imds.spot("terminate", in_s=900)
        done = in_process("doctor", local_root, "--metadata-endpoint", imds.endpoint, "--json")
    assert done.status == 1
    found = checks(done.out)
    assert found["metadata"]["verdict"] == "fits"
    assert "spot terminate in" in found["notice in force"]["found"]
    assert (
        "--instance-id i-0123456789abcdef0" in found["hop limit"]["remedy"]
        or "container" in found["hop limit"]["found"]
    )


def test_on_a_terminal_nothing_is_cut(tmp_path):
    (tmp_path / "file").write_text("where a directory would have to be, so that nothing is measured")
    done = on_terminal("doctor", f"{tmp_path}/file/run", "--state-bytes", "900TB", columns=80)
    lines = done.out.splitlines()
    assert done.status == 1
    assert "…" not in "".join(line for line in lines if "measuring" not in line)
    assert "does not fit" in done.out
    assert "not measured: put is not possible" in done.out


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["s3://b"], 10), (["/a/b", "--state-bytes", "much"], 11), (["/a/b", "--seconds", "1"], 64)],
)
def test_bad_input(arguments, status):
    done = in_process("doctor", *arguments)
    assert (done.status, done.out) == (status, "")
    [line] = done.err.splitlines()
    assert line.startswith("spotckpt: error: ")
