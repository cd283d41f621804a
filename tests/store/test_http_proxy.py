"""S3 through a forward proxy that the environment names."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from spotckpt.deadline import Deadline
from spotckpt.errors import StoreError
from spotckpt.store.open import open_store
from tests.support.http_proxy import HttpProxy
from tests.support.proxy import Proxy
from tests.support.servers import S3Env
from tests.support.tls import authority_and_context

MIB = 1 << 20
SECRET = "Basic " + base64.b64encode(b"me:p@ss").decode()


@pytest.fixture(autouse=True)
def no_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def put_and_read(s3_env: S3Env, **environment: str) -> None:
    data = os.urandom(9 * MIB)
    store = open_store(s3_env.uri, environment={**s3_env.environment, **environment})
    store.create("small", b"one")
    store.put("pack", [data])
    found = bytearray(len(data))
    store.read_into("pack", [(0, [memoryview(found)])])
    assert found == data
    assert store.read("small", limit_bytes=9) == b"one"


def test_requests_pass_through_a_proxy_whole(monkeypatch, s3_env):
    with HttpProxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        put_and_read(s3_env)
    assert any(asked.startswith(f"PUT {s3_env.url}/") for asked in proxy.asked)


def test_over_tls_they_pass_through_a_tunnel(monkeypatch, s3_env, tmp_path: Path):
    trusted, context = authority_and_context(tmp_path)
    with Proxy(s3_env.url, tls=context) as front, HttpProxy() as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        put_and_read(s3_env.behind(front.url), AWS_CA_BUNDLE=str(trusted))
        assert {seen.method for seen in front.seen} >= {"PUT", "GET"}
    assert proxy.asked
    assert all(asked.startswith("CONNECT 127.0.0.1:") for asked in proxy.asked)


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_proxy_is_told_who_asks(over_tls: bool, monkeypatch, s3_env, tmp_path: Path):
    trusted, context = authority_and_context(tmp_path)
    with Proxy(s3_env.url, tls=context if over_tls else None) as front, HttpProxy(SECRET) as proxy:
        monkeypatch.setenv("https_proxy" if over_tls else "http_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        put_and_read(s3_env.behind(front.url), AWS_CA_BUNDLE=str(trusted))
        # a tunnel's end has no need to know
        assert not any("Basic" in value for seen in front.seen for value in seen.headers.values() if over_tls)
    assert proxy.asked


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_proxy_that_refuses_is_named(over_tls: bool, monkeypatch, s3_env, tmp_path: Path):
    trusted, context = authority_and_context(tmp_path)
    with Proxy(s3_env.url, tls=context if over_tls else None) as front, HttpProxy(SECRET) as proxy:
        monkeypatch.setenv("https_proxy" if over_tls else "http_proxy", f"http://127.0.0.1:{proxy.port}")
        store = open_store(
            s3_env.behind(front.url).uri,
            environment={**s3_env.behind(front.url).environment, "AWS_CA_BUNDLE": str(trusted)},
        )
        with pytest.raises(StoreError, match=r"run\.json.*proxy.*407"):
            store.create("run.json", b"x", deadline=Deadline.after(5))


def test_an_exception_goes_past_the_proxy(monkeypatch, s3_env):
    with HttpProxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        put_and_read(s3_env)
    assert proxy.asked == []
