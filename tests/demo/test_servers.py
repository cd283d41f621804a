"""The demo's surroundings: metadata as EC2 answers it, a network that is really slow, processes that really end."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

import pytest

from spotckpt.demo.process import Child, DemoFailed, Output, wait_until
from spotckpt.demo.servers import MetadataServer, SlowNetwork

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
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as reply:
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
    metadata.interrupt("terminate", in_seconds=60)
    status, body, headers = ask(metadata, NOTICE, **session)
    notice = json.loads(body)
    assert (status, notice["action"]) == (200, "terminate")
    when = time.strptime(notice["time"], "%Y-%m-%dT%H:%M:%SZ")
    now = parsedate_to_datetime(headers["Date"]).timetuple()
    assert 55 <= time.mktime(when) - time.mktime(now) <= 61


@contextmanager
def sink():
    """A TCP server that counts what it gets and answers `ok` at the end."""
    received = bytearray()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while piece := connection.recv(65536):
                    received.extend(piece)
                connection.sendall(b"ok")

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1], received
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def network():
    with sink() as (port, received):
        proxy = SlowNetwork(upstream_port=port)
        proxy.start()
        yield proxy, received
        proxy.stop()


def send(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(100)


def test_the_network_passes_everything_both_ways(network):
    proxy, received = network
    data = os.urandom(3_000_000)
    assert send(proxy.port, data) == b"ok"
    assert received == data
    assert proxy.sent_bytes == len(data)


def test_a_throttled_network_holds_back_what_is_sent(network):
    proxy, received = network
    proxy.bytes_per_s = 1_000_000.0
    sender = threading.Thread(target=send, args=(proxy.port, bytes(2_000_000)))
    began = time.monotonic()
    sender.start()
    wait_until("a first byte", lambda: received, 10)
    assert sender.is_alive()
    assert len(received) < 1_500_000
    sender.join(20)
    assert len(received) == 2_000_000
    assert time.monotonic() - began > 1.5  # it cannot be faster than the throttle, however slow the machine


def test_a_closed_network_refuses(network):
    proxy, _ = network
    proxy.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def child(tmp_path, code, output):
    started = Child("child", log_path=tmp_path / "child.log")
    started.start([sys.executable, "-u", "-c", code], environment=os.environ, on_line=output.add)
    return started


def test_a_child_is_read_and_its_status_known(tmp_path):
    output = Output()
    started = child(tmp_path, "print('hello 7'); raise SystemExit(3)", output)
    assert started.wait(20) == 3
    found = output.find(r"hello (\d)")
    assert found is not None
    assert found[1] == "7"
    assert started.tail() == "hello 7"


def test_a_killed_child_is_gone_and_killing_it_again_is_harmless(tmp_path):
    output = Output()
    started = child(tmp_path, "print('up', flush=True); import time; time.sleep(60)", output)
    wait_until("up", lambda: output.find("up"), 20)
    pid = started.pid
    started.kill()
    started.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_waiting_ends_when_the_child_dies_and_shows_what_it_said(tmp_path):
    started = child(tmp_path, "print('so long'); raise SystemExit(4)", Output())
    with pytest.raises(DemoFailed, match=r"(?s)child ended with status 4 before the moon.*so long"):
        wait_until("the moon", lambda: None, 20, alive=[started])
    started.kill()


def test_waiting_ends_by_itself():
    with pytest.raises(DemoFailed, match="no sign of the moon"):
        wait_until("the moon", lambda: None, 0.05)
