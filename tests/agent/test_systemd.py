"""What a service manager hears from the agent; here the test holds its end of the notify socket."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from spotckpt.agent.spawn import ensure_agent
from spotckpt.agent.systemd import ServiceManager, advance, status_line
from spotckpt.errors import AgentError, SettingError
from tests.agent.harness import Machine, Process
from tests.support.proxy import Proxy, answer, stall, then
from tests.support.servers import wait_until


class NotifySocket:
    """systemd's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        """Every line so far."""
        while True:
            try:
                self.heard += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return self.heard

    def count(self, line: str) -> int:
        return sum(heard.startswith(line) for heard in self.listen())

    def wait(self, line: str) -> None:
        wait_until(lambda: self.count(line), what=f"{line} among {self.heard}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def notify(tmp_path) -> Iterator[NotifySocket]:
    made = NotifySocket(str(tmp_path / "notify"))
    yield made
    made.close()


def test_a_socket_without_a_place_in_the_file_system_is_found():
    abstract = NotifySocket(f"@spotckpt-test-{os.getpid()}")
    ServiceManager({"NOTIFY_SOCKET": abstract.address}).tell(READY=1, STATUS="well")
    assert abstract.listen() == ["READY=1", "STATUS=well"]
    abstract.close()


def test_nothing_is_said_where_nobody_listens():
    manager = ServiceManager({})
    manager.tell(READY=1)
    manager.beat()
    assert not manager.listens
    assert manager.patience_s == float("inf")


def test_a_listener_that_is_gone_is_no_error(tmp_path):
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell(READY=1)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, float("inf")),
        ({"WATCHDOG_USEC": "soon"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_the_watchdog_is_fed_only_where_it_is_ours(environ, seconds):
    assert ServiceManager({"NOTIFY_SOCKET": "/nowhere", **environ}).watchdog_s == seconds


def standing(gone: int) -> dict[str, object]:
    upload = {"id": "a0001-x", "sent_bytes": 0, "gone_bytes": gone, "total_bytes": 4_000_000}
    run = {"uri": "s3://b/r", "uploading": upload, "last_committed": None, "error": None}
    return {"notices": [{"kind": "spot", "action": "terminate", "seconds_left": 97.4}], "runs": [run]}


def test_the_status_line_tells_notices_and_progress():
    told = "spot terminate in 97 s; 1 run; s3://b/r: uploading a0001-x, 50 % of 4.0 MB"
    assert status_line(standing(2_000_000)) == told
    assert status_line({"notices": [], "runs": []}) == "no run is open"


def test_only_bytes_that_went_are_an_advance():
    assert advance(standing(1)) == advance(standing(1))
    assert advance(standing(1)) != advance(standing(2))


def started(here: Machine, notify: NotifySocket, *options: str, **environment: str) -> Process:
    return here.agent(*options, NOTIFY_SOCKET=notify.address, WATCHDOG_USEC="1000000", **environment)


def test_readiness_life_and_the_end_are_told(here, notify):
    agent = started(here, notify)
    notify.wait("READY=1")
    wait_until(lambda: notify.count("WATCHDOG=1") > 3, what="signs of life")
    assert notify.listen().index("READY=1") < notify.listen().index("STATUS=no run is open")
    agent.send(signal.SIGTERM)
    notify.wait("STOPPING=1")
    assert agent.wait() == 0


def test_a_stop_takes_as_long_as_the_upload_advances(here, uri, root, notify):
    agent = started(here, notify, "--stop-grace=4")
    trainer = here.trainer()
    trainer.open(uri, settings={"stale_after_s": 5.0, "call_timeout_s": 60.0, "upload_limit": 5e6})
    trainer.stage(uri, 1, numbers=7_500_000)  # six seconds
    wait_until(lambda: here.runs()[0]["uploading"], what="an upload")
    began = time.monotonic()
    agent.send(signal.SIGTERM)
    trainer.wait_event("notice")
    assert trainer.call("close", uri=uri, deadline_s=60)["acknowledged"]
    assert agent.wait() == 0
    assert time.monotonic() - began > 4
    assert notify.count("EXTEND_TIMEOUT_USEC=14000000") > 1
    assert len(list((root / "snapshots").iterdir())) == 1


def test_a_stop_does_not_wait_for_an_upload_that_stands_still(here, s3_env, notify):
    with Proxy(s3_env.url) as proxy:
        agent = started(here, notify, "--stop-grace=1")
        trainer = here.trainer(**s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri, settings={"stale_after_s": 5.0, "call_timeout_s": 60.0})
        proxy.on("PUT", r"/packs/.*safetensors", stall())
        trainer.stage(s3_env.uri, 1)
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        wait_until(lambda: stands_still(here.runs()[0]["uploading"]), what="all of it in the kernel's buffers")
        began = time.monotonic()
        agent.send(signal.SIGTERM)
        agent.wait()
        assert time.monotonic() - began < 50, "it waited for its call to the store, which takes a minute"
        assert notify.count("EXTEND_TIMEOUT_USEC=") == 1


def stands_still(upload: dict[str, int]) -> bool:
    return 0 < upload["total_bytes"] <= upload["gone_bytes"]


def test_a_private_agent_says_nothing_in_the_name_of_its_trainer(here, notify):
    started(here, notify, "--private")
    assert notify.listen() == []


@pytest.fixture
def as_trainer(here, monkeypatch):
    """This process looks for its agent where a trainer of that machine would, whose agent is a service."""
    for name, value in {**here.environment, "SPOTCKPT_AGENT": "service"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_where_a_service_has_the_agent_it_is_waited_for(here, as_trainer):
    with ThreadPoolExecutor(1) as other:
        looking = other.submit(ensure_agent, timeout=60)
        wait_until(here.runtime.exists, what="the trainer looks for an agent")
        agent = here.agent()
        with looking.result() as client:
            assert client.agent_pid == agent.pid


def test_where_a_service_has_the_agent_none_is_started(here, as_trainer):
    with pytest.raises(AgentError, match="systemctl status spotckpt-agent"):
        ensure_agent(timeout=0.5)
    assert not (here.spool / "agent.lock").exists()


def test_an_unknown_way_to_find_the_agent_is_an_error(as_trainer):
    as_trainer.setenv("SPOTCKPT_AGENT", "sevice")
    with pytest.raises(SettingError, match="SPOTCKPT_AGENT='sevice'"):
        ensure_agent()


def test_what_failed_for_lack_of_the_trainers_credentials_is_no_news_to_it(here, s3_env):
    """The next agent tries with its own; while it does, the trainer comes back with others."""
    attached = threading.Event()
    with Proxy(s3_env.url) as proxy:
        agent = here.agent()
        trainer = here.trainer(**s3_env.environment)
        trainer.open(s3_env.uri)
        slot = trainer.call("slot", uri=s3_env.uri, size_bytes=4000, step=1, wait_s=0)
        agent.kill()
        trainer.reply(trainer.start("fill", slot=slot, step=1))
        proxy.on("HEAD", "", then(answer(403), lambda: attached.wait(60)), times=100)
        here.agent(**s3_env.behind(proxy.url).environment)
        trainer.reply(trainer.start("connect"))
        proxy.wait_for("HEAD", "")
        trainer.call("attach", uri=s3_env.uri, attempt=1)
        attached.set()
        trainer.wait_committed(slot["snapshot"])
        assert trainer.events("error") == []
