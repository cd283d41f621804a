"""A real agent, whose role's keys change in an upload, and who is forbidden to write for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.harness import Machine, machine
from tests.support.checker import check
from tests.support.imds import Imds, running_imds
from tests.support.keys import Keys, key_of
from tests.support.proxy import Proxy, answer, then

NUMBERS = 12 << 20
"""48 MiB: three parts."""
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@pytest.fixture
def proxy(s3_env) -> Iterator[Proxy]:
    with Proxy(s3_env.url) as proxy:
        yield proxy


@pytest.fixture
def imds() -> Iterator[Imds]:
    with running_imds() as imds:
        yield imds


@pytest.fixture
def on_role(tmp_path: Path, proxy: Proxy, imds: Imds) -> Iterator[Machine]:
    """A machine whose processes have nothing but the instance's role."""
    nothing = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_ENDPOINT_URL_S3": proxy.url}
    role = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.endpoint}
    with machine(tmp_path / "here", {**nothing, **role}) as made:
        made.agent(f"--metadata-endpoint={imds.endpoint}")
        yield made


@pytest.mark.fault(56)
def test_the_roles_keys_change_in_an_upload_and_the_same_upload_commits(s3_env, on_role, proxy, imds):
    keys = Keys(proxy, "AKFIRST")
    imds.lend("AKFIRST")
    trainer = on_role.trainer()
    trainer.open(s3_env.uri)

    def rotate() -> None:
        keys.valid = {"AKSECOND"}
        imds.lend("AKSECOND")

    proxy.on("PUT", "partNumber=2", then(answer(503), rotate))
    snapshot = trainer.stage(s3_env.uri, 7, numbers=NUMBERS)["snapshot"]
    trainer.wait_committed(snapshot)
    assert len(proxy.wait_for("POST", r"\?uploads")) == 1, "the upload was begun anew"
    assert key_of(proxy.wait_for("PUT", "/snapshots/")[-1]) == "AKSECOND"
    assert trainer.events("error") == []
    check(s3_env.uri, [snapshot])


@pytest.mark.fault(59)
def test_writing_is_forbidden_for_a_while_and_the_training_goes_on(s3_env, proxy, here):
    here.environment |= {"AWS_ENDPOINT_URL_S3": proxy.url}
    here.agent()
    trainer = here.trainer()
    trainer.open(s3_env.uri)
    first = trainer.stage(s3_env.uri, 1)["snapshot"]
    trainer.wait_committed(first)
    proxy.on("PUT", "", answer(403, _DENIED), times=float("inf"))
    second = trainer.stage(s3_env.uri, 2)["snapshot"]
    error = trainer.wait_event("error")
    assert (error["error"], error["key"]) == ("Denied", f"{s3_env.uri}/packs/{second}/rank-00000.safetensors")
    assert "s3:PutObject" in error["hint"]
    assert [run["error"]["error"] for run in here.runs()] == ["Denied"]
    third = trainer.stage(s3_env.uri, 3)["snapshot"]
    proxy.wait_for("PUT", third)
    proxy.clear()
    last = trainer.stage(s3_env.uri, 4)["snapshot"]
    trainer.wait_committed(last)
    assert [run["error"] for run in here.runs()] == [None]
    assert len(trainer.events("error")) == 1, "told once, though it was tried more often"
    check(s3_env.uri, [first, last])
