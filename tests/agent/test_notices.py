"""From the metadata service, by way of a real agent, to trainers."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path

import pytest

from spotckpt.errors import UsageError
from tests.agent.harness import Machine, Process, heartbeat
from tests.support.checker import check
from tests.support.imds import SPOT_PATH, TOKEN_PATH, running_imds
from tests.support.servers import wait_until


@pytest.mark.fault(75)
@pytest.mark.fault(76)
def test_each_notice_reaches_the_trainer_once_and_the_last_snapshot_is_committed(here: Machine, uri: str) -> None:
    with running_imds() as imds:
        here.agent(f"--metadata-endpoint={imds.endpoint}")
        trainer = here.trainer()
        trainer.open(uri)
        imds.rebalance()
        hint = trainer.wait_event("notice")
        assert (hint["kind"], hint["final"], hint["plan"]) == ("rebalance", False, "snapshot")
        imds.spot("terminate", in_s=100)
        final = trainer.wait_event("notice", lambda event: event["final"])
        assert (final["kind"], final["action"], final["plan"]) == ("spot", "terminate", "snapshot")
        assert 60 < final["seconds_left"] <= 101
        polls = imds.count("GET", SPOT_PATH)
        wait_until(lambda: imds.count("GET", SPOT_PATH) > polls + 5)  # repeated, both together
        assert len(trainer.events("notice")) == 2
        last = trainer.stage(uri, 9)["snapshot"]
        assert trainer.call("close", uri=uri, deadline_s=60)["committed"] == last
        assert str(check(uri, [last])) == last


def test_on_a_doomed_machine_a_start_waits_without_claiming(here: Machine, uri: str, root: Path) -> None:
    with running_imds() as imds:
        imds.spot("terminate", in_s=60)
        agent = here.agent(f"--metadata-endpoint={imds.endpoint}")
        trainer = here.trainer()
        assert trainer.hello["notice"] is None or trainer.hello["notice"]["final"]
        tag = trainer.start_open(uri)
        said = trainer.wait_event("waiting")
        assert "spot terminate" in said["message"]
        polls = imds.count("GET", SPOT_PATH)
        wait_until(lambda: imds.count("GET", SPOT_PATH) > polls + 5)
        assert not root.exists(), "something was written under a notice"
        imds.clear()
        assert trainer.reply(tag)["attempt"] == 1
        # the same for a notice given by hand, which outlives the agent
        with here.client() as client:
            client.call("notify", timeout=60, action="stop", in_s=30)
        agent.kill()
        here.agent(f"--metadata-endpoint={imds.endpoint}")
        with here.client() as client:
            assert [notice["kind"] for notice in client.call("status", timeout=60)["notices"]] == ["manual"]
            client.call("notify", timeout=60, clear=True)
            assert client.call("status", timeout=60)["notices"] == []
            with pytest.raises(UsageError, match="evaporate"):
                client.call("notify", timeout=60, action="evaporate")


def num_sockets(process: Process) -> int:
    found = 0
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += str(fd.readlink()).startswith("socket:")
    return found


def test_a_trainer_that_gives_up_waiting_claims_nothing(here: Machine, uri: str, root: Path) -> None:
    agent = here.agent()
    first = here.trainer()
    first.open(uri)
    num_clients = num_sockets(agent)
    second = here.trainer()
    second.start_open(uri)
    assert f"process {first.hello['pid']}" in second.wait_event("waiting")["message"]
    second.kill()
    wait_until(lambda: num_sockets(agent) == num_clients, what="the agent notices")
    first.call("close", uri=uri, deadline_s=60)
    third = here.trainer()
    assert third.open(uri)["attempt"] == 2
    assert sorted(path.name for path in root.glob("attempts/*") if path.name.count(".") == 1) == [
        "0001.json",
        "0002.json",
    ]


@pytest.mark.fault(73)
def test_without_a_metadata_service_training_goes_on(here: Machine, uri: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        agent = here.agent(f"--metadata-endpoint=http://127.0.0.1:{unused.getsockname()[1]}")
        trainer = here.trainer()
        trainer.open(uri)
        trainer.wait_committed(trainer.stage(uri, 1)["snapshot"])
    assert agent.log_text.count("no EC2 metadata service here") == 1
    assert "level=warning" not in agent.log_text


@pytest.mark.fault(77)
@pytest.mark.fault(78)
def test_neither_an_endpoint_nor_a_proxy_in_the_environment_can_feign_a_notice(here: Machine, uri: str) -> None:
    with running_imds() as true, running_imds() as false:
        false.spot("terminate", in_s=60)
        agent = here.agent(
            f"--metadata-endpoint={true.endpoint}",
            AWS_EC2_METADATA_SERVICE_ENDPOINT=false.endpoint,
            http_proxy=false.endpoint,
            HTTP_PROXY=false.endpoint,
            no_proxy="",
            NO_PROXY="",
        )
        trainer = here.trainer()
        trainer.open(uri)
        wait_until(lambda: true.count("PUT", TOKEN_PATH), what="a question to the true one")
        assert false.requests == []
        agent.kill()
        # without the option the variable is still not followed, and the warning says what to do
        again = here.agent(AWS_EC2_METADATA_SERVICE_ENDPOINT=false.endpoint, AWS_EC2_METADATA_DISABLED="true")
        assert f"{false.endpoint} is ignored; to mean it, pass --metadata-endpoint" in again.log_text
        assert false.requests == []


def test_an_agent_that_is_told_to_end_lets_trainers_finish_first(here: Machine, uri: str, root: Path) -> None:
    agent = here.agent("--stop-grace=60")
    trainer = here.trainer()
    trainer.open(uri)
    agent.send(signal.SIGTERM)
    event = trainer.wait_event("notice")
    assert (event["kind"], event["action"]) == ("signal", "terminate")
    assert 30 < event["seconds_left"] <= 60
    last = trainer.stage(uri, 4)["snapshot"]
    assert trainer.call("close", uri=uri, deadline_s=60)["committed"] == last
    assert agent.wait() == 0
    assert heartbeat(root, 1)["released"] is True
    assert not (here.runtime / "agent.sock").exists()
    # with nothing to do it ends at once, and twice told it does not wait for anybody
    idle = here.agent()
    idle.send(signal.SIGINT)
    assert idle.wait() == 0


@pytest.mark.fault(73)
def test_a_notice_is_seen_after_an_outage_that_filled_no_log(here: Machine, uri: str) -> None:
    with running_imds() as imds:
        agent = here.agent(f"--metadata-endpoint={imds.endpoint}", "--poll-interval=0.05")
        trainer = here.trainer()
        trainer.open(uri)
        wait_until(lambda: "the metadata service answers" in agent.log_text)
        before = imds.count("GET", SPOT_PATH)
        wait_until(lambda: imds.count("GET", SPOT_PATH) > before + 20, what="looks")
        imds.expire_tokens()  # 401, and then nobody gives a new one
        imds.token_status = 503
        wait_until(lambda: imds.count("PUT", TOKEN_PATH) > 5, what="looks in vain")
        trainer.wait_committed(trainer.stage(uri, 1)["snapshot"])
        imds.spot("terminate", in_s=100)
        imds.token_status = 200
        event = trainer.wait_event("notice")
        assert (event["kind"], event["action"]) == ("spot", "terminate")
        told = [line for line in agent.log_text.splitlines() if "metadata service" in line]
        assert len(told) <= 5, told
