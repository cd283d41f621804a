"""Roles' credentials: they change in the middle of things, and whoever gives them has troubles of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from spotckpt.deadline import Deadline
from spotckpt.errors import NoCredentials
from spotckpt.store.base import MIB
from spotckpt.store.open import open_store
from tests.support.imds import ROLE_PATH, TOKEN_PATH, lent_keys, running_imds
from tests.support.keys import Keys, key_of
from tests.support.proxy import Proxy, answer, then
from tests.support.servers import Reply, Request, ScriptedServer, wait_until

LARGE = 40 * MIB


@dataclass
class Lender:
    """Who gives a role's keys, and how a process is told of it."""

    environment: dict[str, str]
    lend: Callable[..., None]
    break_down: Callable[[], None]
    asked: Callable[[], int] = field(repr=False)


def _instance() -> Iterator[Lender]:
    with running_imds() as imds:
        yield Lender(
            {"AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.endpoint},
            imds.lend,
            lambda: imds.answers.update({ROLE_PATH: (500, "")}),
            lambda: imds.count("GET", f"{ROLE_PATH}trainer"),
        )


def _container() -> Iterator[Lender]:
    replies = [Reply(500)]

    def script(request: Request) -> Reply:
        return replies[-1] if request.headers.get("Authorization") == "let-me" else Reply(403)

    with ScriptedServer(script) as server:
        yield Lender(
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/keys", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "let-me"},
            lambda key, **limits: replies.append(Reply(200, lent_keys(key, **limits).encode())),
            lambda: replies.append(Reply(500)),
            lambda: len(server.requests),
        )


@pytest.fixture(params=[_instance, _container], ids=["instance", "container"])
def lender(request: pytest.FixtureRequest) -> Iterator[Lender]:
    yield from request.param()


@pytest.fixture
def container() -> Iterator[Lender]:
    yield from _container()


@pytest.fixture
def proxy(s3_env) -> Iterator[Proxy]:
    with Proxy(s3_env.url) as proxy:
        yield proxy


def store_of(env, lender: Lender, proxy: Proxy):
    names = {"AWS_ENDPOINT_URL_S3": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}
    return open_store(env.uri, environment={**names, **lender.environment}, call_timeout_s=30)


@pytest.mark.fault(56)
def test_a_roles_keys_change_in_an_upload_and_the_same_upload_goes_on(s3_env, lender, proxy, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # the agent's own environment is not the trainer's
    keys = Keys(proxy, "AKFIRST")
    lender.lend("AKFIRST")

    def rotate() -> None:
        keys.valid = {"AKSECOND"}
        lender.lend("AKSECOND")

    proxy.on("PUT", "partNumber=2", then(answer(503), rotate))
    data = os.urandom(LARGE)
    store_of(s3_env, lender, proxy).put("pack", [data])
    assert s3_env.client.get_object(Bucket=s3_env.bucket, Key="run/pack")["Body"].read() == data
    assert len(proxy.wait_for("POST", r"\?uploads")) == 1, "the upload was begun anew"
    assert key_of(proxy.wait_for("POST", "uploadId")[0]) == "AKSECOND"


@pytest.mark.fault(57)
def test_keys_that_come_late_are_waited_for(s3_env, lender, proxy):
    keys = Keys(proxy, "AKFIRST")
    lender.lend("AKFIRST")
    store = store_of(s3_env, lender, proxy)
    store.put("heartbeat", [b"1"])
    keys.valid, before = {"AKSECOND"}, lender.asked()

    def lend_late() -> None:
        wait_until(lambda: lender.asked() >= before + 2, what="a second look for keys")
        lender.lend("AKSECOND")

    late = threading.Thread(target=lend_late)
    late.start()
    store.put("heartbeat", [b"2"])
    late.join()
    assert store.read("heartbeat", limit_bytes=9) == b"2"


@pytest.mark.fault(57)
def test_keys_that_are_new_and_refused_all_the_same_are_asked_for_again(s3_env, container, proxy):
    """The old ones have ended, and what is given first in their place is no better."""
    keys = Keys(proxy, "AKFIRST")
    container.lend("AKFIRST")
    store = store_of(s3_env, container, proxy)
    store.put("heartbeat", [b"1"])
    lent = store.inner._client._here.credentials._found
    now = lent._time_fetcher
    lent._time_fetcher = lambda: now() + timedelta(hours=7)  # botocore's clock
    keys.valid, before = {"AKTHIRD"}, container.asked()
    container.lend("AKSECOND", for_s=86400)

    def lend_late() -> None:
        wait_until(lambda: container.asked() >= before + 2, what="a second look for keys")
        container.lend("AKTHIRD", for_s=86400)

    late = threading.Thread(target=lend_late, daemon=True)
    late.start()
    store.put("heartbeat", [b"2"])
    late.join(60)
    assert store.read("heartbeat", limit_bytes=9) == b"2"


@pytest.mark.fault(57)
def test_keys_that_never_come_are_waited_for_within_the_deadline_and_told(s3_env, lender, proxy):
    keys = Keys(proxy, "AKFIRST")
    lender.lend("AKFIRST")
    store = store_of(s3_env, lender, proxy)
    store.put("heartbeat", [b"1"])
    keys.valid, before, deadline = set(), lender.asked(), Deadline.after(4.0)
    with pytest.raises(NoCredentials, match=r"run/heartbeat.*ExpiredToken.*-role gives no others; check the role"):
        store.put("heartbeat", [b"2"], deadline=deadline)
    assert deadline.now() < deadline.at + 3, "all looks would take eight seconds"
    assert before + 2 <= lender.asked() <= before + 5


@pytest.mark.fault(57)
def test_keys_that_had_ended_when_they_were_given_are_no_keys(s3_env, container, proxy):
    container.lend("AKFIRST", for_s=-60)
    with pytest.raises(NoCredentials, match=r"run/heartbeat.*container-role.*expired"):
        store_of(s3_env, container, proxy).put("heartbeat", [b"1"])
    assert proxy.seen == []


def test_keys_that_are_still_good_are_used_while_nobody_gives_new_ones(s3_env, container, proxy):
    keys = Keys(proxy, "AKFIRST")
    container.lend("AKFIRST", for_s=300)  # botocore must have others in the last ten minutes
    store = store_of(s3_env, container, proxy)
    store.put("heartbeat", [b"1"])
    container.break_down()
    for number in range(5):
        store.put("heartbeat", [str(number).encode()])
    container.lend("AKSECOND")
    keys.valid = {"AKSECOND"}
    store.put("heartbeat", [b"last"])


def test_keys_that_are_lent_only_after_the_first_request_are_found(s3_env, lender, proxy):
    Keys(proxy, "AKFIRST")
    store = store_of(s3_env, lender, proxy)
    with pytest.raises(NoCredentials):
        store.put("heartbeat", [b"1"])
    lender.lend("AKFIRST")
    store.put("heartbeat", [b"2"])


def test_a_service_that_is_down_when_keys_end_does_no_lasting_harm(s3_env, lender, proxy):
    keys = Keys(proxy, "AKFIRST")
    lender.lend("AKFIRST")
    store = store_of(s3_env, lender, proxy)
    store.put("heartbeat", [b"1"])
    keys.valid = {"AKSECOND"}
    lender.break_down()
    with pytest.raises(NoCredentials, match="ExpiredToken"):
        store.put("heartbeat", [b"2"], deadline=Deadline.after(1.0))
    lender.lend("AKSECOND")
    store.put("heartbeat", [b"3"])


@pytest.fixture
def web_identity(tmp_path: Path) -> dict[str, str]:
    """What a Kubernetes service account has: a token, and the role that it stands for."""
    token = tmp_path / "token"
    token.write_text("a token")
    names = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": "arn:aws:iam::111122223333:role/trainer"}
    return {**names, "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "/nonexistent"}


def test_a_role_by_web_identity(s3_env, proxy, web_identity):
    environment = {**web_identity, "AWS_ENDPOINT_URL": s3_env.url, "AWS_ENDPOINT_URL_S3": proxy.url}
    open_store(s3_env.uri, environment=environment).put("heartbeat", [b"1"])
    assert proxy.seen[0].headers["x-amz-security-token"]


def test_a_role_that_is_refused_is_told(s3_env, proxy, web_identity):
    body = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>no trust</Message></Error></ErrorResponse>"
    with ScriptedServer(lambda request: (request.body(), Reply(403, body))[1]) as sts:
        environment = {**web_identity, "AWS_ENDPOINT_URL": sts.url, "AWS_ENDPOINT_URL_S3": proxy.url}
        with pytest.raises(NoCredentials, match=r"run/heartbeat.*assume-role-with-web-identity.*no trust"):
            open_store(s3_env.uri, environment=environment).put("heartbeat", [b"1"])
    assert proxy.seen == []


@pytest.mark.fault(74)
def test_a_token_that_never_comes_is_explained_by_the_hop_limit(s3_env, proxy):
    with running_imds() as imds:
        imds.lend("AKFIRST")
        imds.silent = {TOKEN_PATH}
        lender = Lender({"AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.endpoint}, imds.lend, imds.clear, lambda: 0)
        with pytest.raises(NoCredentials, match=r"run/heartbeat.*hop limit"):
            store_of(s3_env, lender, proxy).put("heartbeat", [b"1"])
