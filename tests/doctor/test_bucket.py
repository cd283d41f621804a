"""What is asked of a store, against servers that answer, refuse, ignore and dawdle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spotckpt.doctor import rates
from spotckpt.doctor.bucket import examine
from spotckpt.doctor.facts import Bucket
from spotckpt.doctor.judge_bucket import bucket_rows
from spotckpt.snapshot.keys import parse_key
from spotckpt.store.base import MIB
from spotckpt.store.lifecycle import days_of
from spotckpt.store.open import open_store
from tests.support.groups import GroupServer
from tests.support.proxy import Proxy, stall_request, strip_header
from tests.support.rights import enforce, user
from tests.support.servers import S3Env, free_port, running

ROOT = Path(__file__).resolve().parents[2]
SIZE = 17 * MIB
EVERYTHING = ["put", "conditional put", "get", "list", "multipart", "abort", "list uploads", "delete"]
IN_A_DIRECTORY = ["put", "conditional put", "get", "list", "delete"]
ACTIONS = {
    "put": "s3:PutObject",
    "get": "s3:GetObject",
    "list": "s3:ListBucket",
    "abort": "s3:AbortMultipartUpload",
    "list uploads": "s3:ListBucketMultipartUploads",
    "delete": "s3:DeleteObject",
    "lifecycle": "s3:GetLifecycleConfiguration",
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object of two parts tells enough here."""
    for name in ("FIRST_BYTES", "BLOCK_BYTES", "MOST_BYTES"):
        monkeypatch.setattr(rates, name, SIZE)


def look(uri: str, *, seconds: float = 5.0, timeout_s: float = 10.0) -> Bucket:
    return examine(uri, seconds=seconds, timeout_s=timeout_s)


def allowed(bucket: Bucket) -> list[str]:
    return [one.name for one in bucket.permissions if one.allowed]


def test_a_bucket_that_allows_everything(seaweed_env):
    found = look(seaweed_env.uri)
    assert (found.trouble, allowed(found)) == ("", EVERYTHING)
    assert found.upload.measured_bytes == found.download.measured_bytes == SIZE
    assert (found.upload.bytes_per_s or 0) > 1e6 < (found.download.bytes_per_s or 0)
    assert abs(found.clock_ahead_s or 99) < 2
    assert (found.expiry_days, found.expiry_unknown) == (None, "")
    assert (seaweed_env.keys(), seaweed_env.uploads()) == ([], [])


def test_a_directory_that_is_not_there_yet(tmp_path):
    found = look(f"file://{tmp_path}/runs/new")
    assert allowed(found) == [one.name for one in found.permissions] == IN_A_DIRECTORY
    assert found.upload.measured_bytes == SIZE
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_directory_that_may_not_be_written(tmp_path):
    (tmp_path / "file").write_text("no directory")
    found = look(f"file://{tmp_path}/file/run")
    assert not {"put", "conditional put"} & {*allowed(found)}
    assert found.upload.bytes_per_s is None


def test_a_slow_line_is_given_up_in_time_and_leaves_nothing(seaweed_env, monkeypatch):
    size = 64 * MIB
    for name, value in (("FIRST_BYTES", size), ("MOST_BYTES", size), ("BLOCK_BYTES", 16 * MIB)):
        monkeypatch.setattr(rates, name, value)
    with Proxy(seaweed_env.url, bytes_per_s=4_000_000) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        found = look(seaweed_env.uri, seconds=2.5)
    assert found.upload.measured_bytes < size
    assert 1e5 < (found.upload.bytes_per_s or 0) < 7e6
    assert found.download.measured_bytes == MIB
    assert allowed(found) == EVERYTHING
    assert (seaweed_env.keys(), seaweed_env.uploads()) == ([], [])


def test_a_line_that_dies_is_told_in_time(seaweed_env, monkeypatch):
    with Proxy(seaweed_env.url) as proxy:
        proxy.on("PUT", "partNumber=", stall_request(100_000), times=float("inf"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        found = look(seaweed_env.uri, seconds=2.0, timeout_s=1.0)
    assert found.upload.bytes_per_s is None
    assert found.upload.why
    assert "multipart" not in allowed(found)
    assert (seaweed_env.keys(), seaweed_env.uploads()) == ([], [])


def test_a_store_that_ignores_conditions(s3_env, monkeypatch):
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", r"/doctor/", strip_header("if-none-match"), times=float("inf"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        found = look(s3_env.uri)
    assert [name for name in EVERYTHING if name not in allowed(found)] == ["conditional put"]
    assert "overwrote" in found.permissions[1].why


def rule(prefix: str, *, days: int = 7, status: str = "Enabled") -> dict[str, Any]:
    abort = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": days}}
    return {"ID": f"{prefix}{days}", "Status": status, "Filter": {"Prefix": prefix}, **abort}


def test_the_bucket_s_own_rule(s3_env):
    rules = {"Rules": [rule("elsewhere/", days=1), rule("run/")]}
    s3_env.client.put_bucket_lifecycle_configuration(Bucket=s3_env.bucket, LifecycleConfiguration=rules)
    found = look(s3_env.uri)
    assert (found.expiry_days, found.num_rules, found.expiry_unknown) == (7.0, 2, "")


@pytest.mark.parametrize(
    ("rules", "days"),
    [
        ([rule("")], 7.0),
        ([rule(""), rule("runs/", days=3)], 3.0),
        ([rule("runs/a/doctor/")], None),
        ([rule("", status="Disabled")], None),
        ([{"Status": "Enabled", "Prefix": "ru", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}], 2.0),
        ([{"Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}], None),
    ],
)
def test_a_rule_holds_for_all_of_the_run_or_not_at_all(rules, days):
    assert days_of(rules, "runs/a") == days


def test_a_bucket_and_a_server_that_are_not_there(s3_env, monkeypatch):
    assert "NoSuchBucket" in look("s3://no-such-bucket/run").trouble
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    found = look(s3_env.uri, timeout_s=1.0)
    assert found.trouble
    assert "endpoint" in found.hint


@pytest.fixture(scope="module")
def guarded() -> Iterator[GroupServer]:
    with running(GroupServer()) as server:
        server.client.create_bucket(Bucket="guarded")
        yield server  # type: ignore[misc]


@pytest.fixture(scope="module")
def users(guarded: GroupServer) -> dict[str, dict[str, str]]:
    """One user for each action: all but that one are allowed."""
    made = {
        name: user(guarded, name.replace(" ", "-"), most=_policy([*ACTIONS.values()], without=action))
        for name, action in ACTIONS.items()
    }
    written = (ROOT / "deploy/aws/trainer-policy.json").read_text()
    made["trainer"] = user(guarded, "trainer", trainer=written.replace("BUCKET", "guarded"))
    enforce(guarded, after="0")
    return made


def _policy(actions: list[str], *, without: str) -> str:
    rest = [action for action in actions if action != without]
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": rest, "Resource": "*"}]})


@pytest.mark.parametrize("name", ACTIONS)
def test_each_right_that_is_missing_is_named(guarded, users, name, monkeypatch):
    for variable, value in {**guarded.environment(), **users[name]}.items():
        monkeypatch.setenv(variable, value)
    found = look("s3://guarded/run")
    assert found.trouble == ""
    denied = [one.name for one in found.permissions if one.allowed is False]
    if name == "put":  # nothing can be written, so nothing can be measured
        assert {"put", "conditional put"} <= {*denied}
        assert found.upload.bytes_per_s is None
    elif name == "lifecycle":
        assert (denied, "403" in found.expiry_unknown) == ([], True)
    else:
        assert denied == [name]
    assert bool(found.expiry_unknown) == (name == "lifecycle")


def test_a_trainers_policy_is_all_that_a_training_needs(guarded, users, monkeypatch):
    for variable, value in {**guarded.environment(), **users["trainer"]}.items():
        monkeypatch.setenv(variable, value)
    found = look("s3://guarded/runs/resnet")
    assert [name for name in EVERYTHING if name not in allowed(found)] == ["delete"]
    verdicts = {row.check: row.verdict for row in bucket_rows(found)}
    assert {check for check, verdict in verdicts.items() if verdict != "fits"} == {"delete", "lifecycle rule"}
    assert "does not fit" not in verdicts.values()
    elsewhere = look("s3://guarded/elsewhere/resnet")
    assert {"put", "get"} <= {one.name for one in elsewhere.permissions if one.allowed is False}


def test_what_may_not_be_deleted_takes_no_room(guarded, users, monkeypatch):
    env = S3Env(guarded.url, "guarded", {**guarded.environment(), **users["delete"]}, None)
    for variable, value in env.environment.items():
        monkeypatch.setenv(variable, value)
    look("s3://guarded/kept")
    with closing(open_store("s3://guarded/kept")) as store:
        [left] = store.list("")
    assert left.size_bytes == 0
    key = parse_key(left.key)
    assert key is not None
    assert key.kind == "probe"
