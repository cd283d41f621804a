"""The discarding server answers as S3 does: what it says is asked with boto3, which is independent of it."""

from __future__ import annotations

import io
import os
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.bench.processes import Discarding
from tests.support.servers import S3Env, running

LARGE = 5 << 20


@pytest.fixture(scope="module", params=["discards", "keeps"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Discarding]:
    keep = tmp_path_factory.mktemp("keep") if request.param == "keeps" else None
    with running(Discarding(keep)) as started:
        yield started  # type: ignore[misc]


@pytest.fixture
def env(server: Discarding) -> S3Env:
    return server.new_env()


def keeps(server: Discarding) -> bool:
    return server.keep is not None


def code_of(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def test_small_objects_come_back_with_their_etag_and_ranges(env):
    place = {"Bucket": env.bucket, "Key": "a/é & <b>.json"}
    put = env.client.put_object(Body=b"0123456789", **place)
    found = env.client.get_object(Range="bytes=2-4", **place)
    assert (found["Body"].read(), found["ContentRange"], found["ETag"]) == (b"234", "bytes 2-4/10", put["ETag"])
    assert env.client.get_object(**place)["Body"].read() == b"0123456789"
    assert code_of(env.client.get_object, Range="bytes=10-", **place) == "InvalidRange"
    assert code_of(env.client.get_object, IfMatch='"other"', **place) == "PreconditionFailed"


def test_conditional_put_has_one_winner(env):
    place = {"Bucket": env.bucket, "Key": "once"}
    env.client.put_object(Body=b"first", IfNoneMatch="*", **place)
    assert code_of(env.client.put_object, Body=b"second", IfNoneMatch="*", **place) == "PreconditionFailed"
    assert env.client.get_object(**place)["Body"].read() == b"first"


def test_a_large_object_has_its_size_and_its_bytes_if_they_are_kept(env, server):
    place = {"Bucket": env.bucket, "Key": "large"}
    data = os.urandom(LARGE)
    env.client.put_object(Body=data, **place)
    assert env.client.head_object(**place)["ContentLength"] == LARGE
    if keeps(server):
        assert env.client.get_object(Range=f"bytes=7-{LARGE - 9}", **place)["Body"].read() == data[7:-8]
    else:
        assert code_of(env.client.get_object, **place) == "Discarded"


def test_multipart_uploads(env, server):
    place = {"Bucket": env.bucket, "Key": "parts"}
    data = os.urandom(3 * LARGE)
    env.client.upload_fileobj(io.BytesIO(data), *place.values(), Config=_parts_of(LARGE))
    assert env.client.head_object(**place)["ContentLength"] == len(data)
    if keeps(server):
        over_a_seam = f"bytes={LARGE - 3}-{2 * LARGE + 3}"
        assert env.client.get_object(Range=over_a_seam, **place)["Body"].read() == data[LARGE - 3 : 2 * LARGE + 4]
    upload = env.client.create_multipart_upload(**place)["UploadId"]
    env.client.upload_part(UploadId=upload, PartNumber=1, Body=b"x", **place)
    assert env.uploads() == ["parts"]
    env.client.abort_multipart_upload(UploadId=upload, **place)
    assert env.uploads() == []
    late = {"UploadId": upload, "PartNumber": 2, "Body": b"x"}
    assert code_of(env.client.upload_part, **late, **place) == "NoSuchUpload"


def _parts_of(size_bytes: int) -> Any:
    return boto3.s3.transfer.TransferConfig(multipart_threshold=size_bytes, multipart_chunksize=size_bytes)


def test_listing_has_pages_prefixes_and_delimiters(env):
    for number in range(7):
        env.client.put_object(Bucket=env.bucket, Key=f"run/{number % 3}/{number}", Body=b"x")
    pages = env.client.get_paginator("list_objects_v2").paginate(
        Bucket=env.bucket, Prefix="run/", PaginationConfig={"PageSize": 3}
    )
    found = [[item["Key"] for item in page["Contents"]] for page in pages]
    assert [len(keys) for keys in found] == [3, 3, 1]
    assert [key for keys in found for key in keys] == sorted(f"run/{number % 3}/{number}" for number in range(7))
    level = env.client.list_objects_v2(Bucket=env.bucket, Prefix="run/", Delimiter="/")
    assert [item["Prefix"] for item in level["CommonPrefixes"]] == ["run/0/", "run/1/", "run/2/"]


def test_deleting_one_and_many_removes_files_too(env, server):
    for key in ("a", "b", "c"):
        env.client.put_object(Bucket=env.bucket, Key=key, Body=bytes(LARGE))
    env.client.delete_object(Bucket=env.bucket, Key="a")
    env.client.delete_objects(Bucket=env.bucket, Delete={"Objects": [{"Key": "b"}]})
    assert env.keys() == ["c"]
    assert code_of(env.client.head_object, Bucket=env.bucket, Key="a") == "404"
    if keeps(server):
        env.client.copy_object(Bucket=env.bucket, Key="d", CopySource={"Bucket": env.bucket, "Key": "c"})
        assert env.client.get_object(Bucket=env.bucket, Key="d")["Body"].read() == bytes(LARGE)


def test_aws_chunked_bodies_count_by_their_payload(env, server):
    body = b"5;chunk-signature=0\r\nhello\r\n6;chunk-signature=1\r\n world\r\n0;chunk-signature=2\r\nx-amz-c:1\r\n\r\n"
    head = f"PUT /{env.bucket}/chunked HTTP/1.1\r\nContent-Length: {len(body)}\r\nX-Amz-Decoded-Content-Length: 11\r\n"
    expect = "Expect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as raw, raw.makefile("rb") as answers:
        raw.sendall((head + expect).encode())
        assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answers.readline() == b"\r\n"
        for start in range(0, len(body), 7):
            raw.sendall(body[start : start + 7])
        assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
    assert env.client.get_object(Bucket=env.bucket, Key="chunked")["Body"].read() == b"hello world"


def test_it_tells_how_many_bytes_came(env, server):
    before = server.stats()
    env.client.put_object(Bucket=env.bucket, Key="counted", Body=bytes(LARGE))
    env.client.head_object(Bucket=env.bucket, Key="counted")
    assert server.stats()["received_bytes"] - before["received_bytes"] == LARGE
    assert "CPU s/GiB" in server.cost_since(before)


def test_connections_are_kept_and_the_next_request_is_found(server, env):
    client = boto3.client(
        "s3", endpoint_url=server.url, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1",
        config=Config(max_pool_connections=1),
    )  # fmt: skip
    for number in range(20):
        client.put_object(Bucket=env.bucket, Key=f"k{number}", Body=bytes(number * 100_000))
    assert len(env.keys("k")) == 20
    client.close()


def test_it_ends_with_its_starter(tmp_path: Path):
    with running(Discarding()) as started:
        process = started._process
        assert process is not None
        assert process.stdin is not None
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{started.url}/-stats") as reply:
            assert reply.status == 200
        process.stdin.close()
        assert process.wait(10) == 0
