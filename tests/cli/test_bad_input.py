"""Bad input: one line on standard error that names the thing, a status of its own, no traceback, nothing written."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from blake3 import blake3

from tests.cli.command import Done, in_process, spotckpt


def fails(status: int, *arguments: str, **environment: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return told(status, in_process(*arguments))


def told(status: int, done: Done) -> str:
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("spotckpt: error: ")]
    return line


@pytest.mark.parametrize("verb", ["ls", "show", "verify"])
@pytest.mark.parametrize(
    ("uri", "status", "words"),
    [
        ("ftpx://host/run", 10, "ftpx://"),
        ("s3://bucket", 10, "names a bucket only"),
        ("/a/../b", 10, "'..'"),
        ("/a/b@step=x", 10, "selector @step=x"),
        ("/a/b@yesterday", 10, "selector @yesterday"),
        ("/nonexistent/spotckpt/run", 21, "no run here"),
    ],
)
def test_an_address_that_cannot_be(verb, uri, status, words):
    line = fails(status, verb, uri)
    assert words in line
    assert "; " in line, "no hint"


@pytest.mark.parametrize("verb", ["ls", "show", "verify"])
def test_another_process_says_the_same(tmp_path, verb):
    done, again = spotckpt(verb, str(tmp_path / "no-run")), in_process(verb, str(tmp_path / "no-run"))
    assert done == again
    assert done.status == 21


def test_ls_wants_a_whole_run(local_run):
    assert "names one snapshot" in fails(10, "ls", f"{local_run.uri}@step=100")


def test_a_bucket_that_is_not_there(s3_env):
    assert "no-such-bucket" in fails(23, "ls", "s3://no-such-bucket/run")


def test_no_credentials(s3_env):
    fails(25, "ls", s3_env.uri, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_EC2_METADATA_DISABLED="true")


def test_a_selector_that_matches_nothing(local_run):
    assert "100, 157, 200, 300" in fails(33, "show", f"{local_run.uri}@step=7")
    fails(33, "verify", f"{local_run.uri}@best=valid/f1:max")
    fails(33, "show", f"{local_run.uri}@a0001-n000000-s00000100-00000000")
    fails(33, "show", f"{local_run.uri}@start")


def manifest(local_run, place: int) -> Path:
    path: Path = local_run.root / "snapshots" / f"{local_run.ids[place]}.json"
    return path


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_corrupt_manifest_is_shown_and_told(local_run):
    flip(manifest(local_run, 3), 200)
    key = f"snapshots/{local_run.ids[3]}.json"
    for verb in ("ls", "show", "verify"):
        assert key in fails(31, verb, local_run.uri)
    listed = in_process("ls", local_run.uri).out
    assert all(str(one) in listed for one in local_run.ids)
    assert "unreadable" in listed
    documents = json.loads(in_process("ls", "--json", local_run.uri).out)
    assert [bool(one["problem"]) for one in documents["snapshots"]] == [False, False, False, True]


def test_a_future_manifest_is_not_guessed_at(local_run):
    body = b'{"format":9,"quantum":true}'
    manifest(local_run, 3).write_bytes(b'{"blake3":"%s","body":%s}' % (blake3(body).hexdigest().encode(), body))
    for verb in ("ls", "show", "verify"):
        line = fails(32, verb, local_run.uri)
        assert "format 9" in line
        assert "upgrade" in line


@pytest.mark.fault(64)
def test_verify_names_the_tensor_the_key_and_the_digest(local_run):
    pack = local_run.root / "packs" / str(local_run.ids[1]) / "rank-00000.safetensors"
    flip(pack, pack.stat().st_size - 1)
    line = fails(31, "verify", local_run.uri)
    assert f"packs/{local_run.ids[1]}/rank-00000.safetensors" in line
    assert "digest" in line
    shown = json.loads(in_process("verify", "--json", local_run.uri).out)
    assert shown["whole"] is False
    assert [one["whole"] for one in shown["snapshots"]] == [True, False, True, True]


@pytest.mark.fault(66)
@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00000.json"])
def test_verify_tells_of_a_missing_object(local_run, name):
    (local_run.root / "packs" / str(local_run.ids[2]) / name).unlink()
    assert f"packs/{local_run.ids[2]}/{name} is missing" in fails(31, "verify", local_run.uri)


@pytest.mark.fault(66)
def test_a_snapshot_that_a_heartbeat_names_and_nobody_finds(local_run):
    manifest(local_run, 3).unlink()
    assert f"snapshots/{local_run.ids[3]}.json is missing" in fails(31, "verify", local_run.uri)
    assert str(local_run.ids[3]) in fails(31, "ls", local_run.uri)


@pytest.mark.parametrize(
    ("data", "status"), [(b"half", 31), (b"no safetensors file", 35), (b"\2" + bytes(7) + b"[]", 31)]
)
def test_a_file_that_is_none_is_not_called_a_snapshot(tmp_path, data, status):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    line = fails(status, "push", str(path), f"{tmp_path}/run")
    assert str(path) in line and line.endswith("; it is no safetensors file, or was damaged on its way: fetch it again")
    assert not (tmp_path / "run").exists()


def test_a_place_that_no_file_can_be_written_to(local_run):
    line = fails(64, "pull", local_run.uri, "/proc/x.pt")
    assert "cannot write /proc/" in line and line.endswith("; write elsewhere")


def test_a_run_without_its_record_is_not_whole(local_run):
    (local_run.root / "run.json").unlink()
    assert "/run.json is missing; put it back" in fails(31, "verify", local_run.uri)


def test_several_problems_are_counted(local_run):
    for place in (0, 1):
        (local_run.root / "packs" / str(local_run.ids[place]) / "rank-00000.safetensors").unlink()
    assert "and 1 more problem" in fails(31, "verify", local_run.uri)


def test_a_corrupt_record_is_told(local_run):
    flip(local_run.root / "attempts" / "0002.base.json", 120)
    assert "attempts/0002.base.json" in fails(31, "ls", local_run.uri)
    assert "attempts/0002.base.json" in fails(31, "verify", local_run.uri)


def test_a_server_that_is_not_there(s3_env):
    with socket.socket() as taken:  # nobody else gets the port, and nobody listens
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        fails(26, "ls", "--timeout", "2", s3_env.uri, AWS_ENDPOINT_URL_S3=endpoint, AWS_ENDPOINT_URL=endpoint)


@pytest.mark.parametrize("verb", ["status", "notify"])
def test_no_agent(tmp_path, verb):
    line = fails(40, verb, SPOTCKPT_RUNTIME_DIR=str(tmp_path / "nobody"))
    assert str(tmp_path / "nobody" / "agent.sock") in line


def test_settings_out_of_range(tmp_path):
    assert "poll_interval" in fails(11, "agent", "--poll-interval", "0", "--runtime-dir", str(tmp_path))


def test_demo_keeps_only_in_a_new_directory(tmp_path):
    assert str(tmp_path) in fails(11, "demo", "--keep", str(tmp_path))


def test_demo_without_its_extra(tmp_path):
    """A package of that name that cannot be imported stands for the one that is not installed."""
    (tmp_path / "moto").mkdir()
    (tmp_path / "moto" / "__init__.py").write_text("raise ImportError('no moto here')")
    assert 'pip install "spotckpt[demo]"' in told(64, spotckpt("demo", PYTHONPATH=str(tmp_path)))
