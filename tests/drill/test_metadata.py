"""The drill's metadata server answers as EC2's."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from datetime import datetime
from email.utils import parsedate_to_datetime

import pytest

from spotckpt.drill.metadata import MetadataServer

NOTICE = "/latest/meta-data/spot/instance-action"


@pytest.fixture
def metadata():
    server = MetadataServer(instance_id="i-1")
    server.start()
    yield server
    server.stop()


def ask(server, path, *, method="GET", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.endpoint + path, method=method, headers=named)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            return reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def token(server):
    status, value, _ = ask(server, "/latest/api/token", method="PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    assert status == 200
    return {"X_aws_ec2_metadata_token": value}


def test_metadata_needs_a_token(metadata):
    assert ask(metadata, NOTICE)[0] == 401
    assert ask(metadata, NOTICE, X_aws_ec2_metadata_token="made-up")[0] == 401
    assert ask(metadata, "/latest/api/token", method="PUT")[0] == 400


def test_there_is_no_notice_until_there_is_one(metadata):
    session = token(metadata)
    assert ask(metadata, NOTICE, **session)[0] == 404
    before = time.time()
    metadata.interrupt("terminate", in_seconds=60)
    after = time.time()
    status, body, headers = ask(metadata, NOTICE, **session)
    notice = json.loads(body)
    assert (status, notice["action"]) == (200, "terminate")
    when = datetime.strptime(notice["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    assert int(before) + 60 <= when <= after + 60
    assert int(after) <= parsedate_to_datetime(headers["Date"]).timestamp() <= time.time()
