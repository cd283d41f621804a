"""What the watcher makes of a real metadata service on loopback."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from spotckpt.deadline import SYSTEM_CLOCK
from spotckpt.errors import SettingError
from spotckpt.notices.ec2 import ENDPOINT, ENDPOINT_IPV6, HOP_LIMIT_HINT, PATHS, Ec2Metadata, choose_endpoint
from spotckpt.notices.notice import Notice
from spotckpt.notices.watch import next_delay_s
from tests.support.imds import (
    INSTANCE_PATH,
    LIFECYCLE_PATH,
    REBALANCE_PATH,
    SCHEDULED_PATH,
    SPOT_PATH,
    TOKEN_PATH,
    Imds,
    iso,
    running_imds,
)
from tests.support.servers import wait_until


@pytest.fixture
def imds() -> Iterator[Imds]:
    with running_imds() as server:
        yield server
        for source in _SOURCES:
            source.close()
        _SOURCES.clear()


_SOURCES: list[Ec2Metadata] = []


def _source(imds: Imds, *, timeout_s: float = 60.0) -> Ec2Metadata:
    _SOURCES.append(Ec2Metadata(imds.endpoint, timeout_s=timeout_s))
    return _SOURCES[-1]


def _sighted(imds: Imds, in_s: float) -> Notice:
    """The one notice that is shown, whose deadline must be that far away; `Date` and `time` are of whole seconds."""
    began = SYSTEM_CLOCK.now()
    (notice,) = _source(imds).poll().notices
    assert notice.deadline is not None
    assert began + in_s - 2 <= notice.deadline <= SYSTEM_CLOCK.now() + in_s + 2
    return notice


def test_nothing_announced_is_no_notice_and_every_path_is_asked(imds: Imds) -> None:
    poll = _source(imds).poll()
    assert (poll.notices, poll.state) == ((), "answers")
    assert {path for method, path, _ in imds.requests if method == "GET"} == set(PATHS)
    assert imds.count("PUT", TOKEN_PATH) == 1


def test_one_connection_serves_every_look(imds: Imds) -> None:
    source = _source(imds)
    for _ in range(5):
        assert source.poll().state == "answers"
    assert imds.num_connections == 1


@pytest.mark.fault(73)
def test_a_kept_connection_that_the_service_ended_is_no_trouble(imds: Imds) -> None:
    source = _source(imds)
    source.poll()
    imds.hang_up()
    wait_until(lambda: not imds._open)
    imds.spot("terminate", in_s=90)
    poll = source.poll()
    assert (len(poll.notices), poll.detail) == (1, "")
    assert imds.num_connections == 2


@pytest.mark.fault(73)
def test_the_rest_of_a_long_answer_is_not_taken_for_the_next(imds: Imds) -> None:
    source = _source(imds)
    imds.answers[REBALANCE_PATH] = (200, "x" * (1 << 17))
    imds.answers[LIFECYCLE_PATH] = (200, "Terminated")
    assert [notice.kind for notice in source.poll().notices] == ["lifecycle"]
    imds.clear()
    assert source.poll().detail == ""


@pytest.mark.fault(75)
@pytest.mark.parametrize(("action", "in_s"), [("terminate", 120), ("stop", 30), ("hibernate", 60), ("terminate", -20)])
def test_deadline_is_computed_from_time_and_date(imds: Imds, action: str, in_s: float) -> None:
    imds.spot(action, in_s=in_s)
    notice = _sighted(imds, in_s)
    assert (notice.kind, notice.action, notice.is_final) == ("spot", action, True)
    now = SYSTEM_CLOCK.now()
    assert notice.deadline is not None and notice.seconds_left(now) == max(notice.deadline - now, 0)


@pytest.mark.fault(75)
def test_a_service_with_another_clock_gives_the_same_seconds_left(imds: Imds) -> None:
    imds.date_offset_s = 86400.0
    imds.spot("terminate", in_s=40)
    _sighted(imds, 40)


@pytest.mark.fault(75)
@pytest.mark.parametrize(
    "time_field", ['"never"', "17", "null", '"2017-99-99T00:00:00Z"', '"9999-12-31T23:59:59-23:59"']
)
def test_a_malformed_time_is_an_unknown_deadline(imds: Imds, time_field: str) -> None:
    imds.answers[SPOT_PATH] = (200, f'{{"action": "terminate", "time": {time_field}}}')
    (notice,) = _source(imds).poll().notices
    assert (notice.deadline, notice.is_final) == (None, True)


@pytest.mark.fault(75)
def test_hibernate_without_a_time_is_a_final_notice_of_unknown_deadline(imds: Imds) -> None:
    imds.spot("hibernate", in_s=None)
    (notice,) = _source(imds).poll().notices
    assert (notice.action, notice.deadline, notice.is_final) == ("hibernate", None, True)


def test_the_deadline_of_one_notice_only_moves_earlier(imds: Imds) -> None:
    source = _source(imds)
    imds.spot("terminate", in_s=100)
    (first,) = source.poll().notices
    imds.date_offset_s = -30.0  # the service's clock is set back: time - Date grows
    (second,) = source.poll().notices
    assert second.deadline == first.deadline
    assert second.id == first.id


def test_rebalance_is_a_hint(imds: Imds) -> None:
    imds.rebalance()
    (notice,) = _source(imds).poll().notices
    assert (notice.kind, notice.is_final) == ("rebalance", False)


def test_a_lifecycle_state_of_terminated_means_leave(imds: Imds) -> None:
    source = _source(imds)
    imds.answers[LIFECYCLE_PATH] = (200, "InService")
    assert source.poll().notices == ()
    imds.answers[LIFECYCLE_PATH] = (200, "Terminated")
    (notice,) = source.poll().notices
    assert (notice.kind, notice.action, notice.deadline) == ("lifecycle", "terminate", None)


@pytest.mark.parametrize(
    ("code", "state", "in_s", "final"),
    [
        ("instance-stop", "active", 300, True),
        ("instance-retirement", "active", 300, True),
        ("system-reboot", "active", 300, True),
        ("instance-stop", "active", 3600, False),
        ("instance-stop", "completed", 300, False),
        ("instance-stop", "canceled", 300, False),
        ("system-maintenance", "active", 300, False),
    ],
)
def test_only_a_near_scheduled_event_that_ends_the_instance_counts(
    imds: Imds, code: str, state: str, in_s: float, final: bool
) -> None:
    event = {
        "NotBefore": formatdate(imds.wall() + in_s, usegmt=True).split(", ")[1],
        "Code": code,
        "Description": "scheduled",
        "EventId": "instance-event-0d59937288b749b32",
        "State": state,
    }
    imds.answers[SCHEDULED_PATH] = (200, json.dumps([event]))
    if final:
        assert _sighted(imds, in_s).is_final
    else:
        assert _source(imds).poll().notices == ()


@pytest.mark.fault(73)
def test_an_expired_token_is_renewed_and_replaced(imds: Imds) -> None:
    source = _source(imds)
    source.poll()
    imds.expire_tokens()
    imds.spot("terminate", in_s=90)
    poll = source.poll()
    assert (len(poll.notices), poll.state) == (1, "answers")
    assert imds.count("PUT", TOKEN_PATH) == 2
    rejected = [status for method, _, status in imds.requests if method == "GET"].count(401)
    assert rejected == 1, "the new token was not used for the following requests"


@pytest.mark.fault(73)
def test_refusal_is_quiet(imds: Imds) -> None:
    imds.token_status = 403
    poll = _source(imds).poll()
    assert (poll.notices, poll.state) == ((), "disabled")


@pytest.mark.fault(73)
@pytest.mark.parametrize("status", [404, 405])
def test_a_metadata_service_of_another_cloud_is_no_ec2(imds: Imds, status: int) -> None:
    imds.token_status = status
    assert _source(imds).poll().state == "absent"


@pytest.mark.fault(73)
@pytest.mark.parametrize("status", [500, 503, 429, 400])
def test_trouble_on_one_path_neither_hides_nor_ends_a_notice(imds: Imds, status: int) -> None:
    source = _source(imds)
    imds.spot("terminate", in_s=90)
    assert len(source.poll().notices) == 1
    imds.answers[SPOT_PATH] = (status, "")
    imds.rebalance()
    poll = source.poll()
    assert poll.detail
    assert sorted(notice.kind for notice in poll.notices) == ["rebalance", "spot"]
    imds.clear()
    assert (source.poll().notices, source.poll().state) == ((), "answers")


@pytest.mark.fault(73)
def test_nobody_there_is_absent() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        poll = Ec2Metadata(f"http://127.0.0.1:{unused.getsockname()[1]}", timeout_s=0.5).poll()
    assert (poll.notices, poll.state) == ((), "absent")


@pytest.mark.fault(73)
def test_a_slow_answer_is_given_up_and_asked_again(imds: Imds) -> None:
    source = _source(imds, timeout_s=2.0)
    imds.silent = {REBALANCE_PATH}
    imds.spot("terminate", in_s=90)
    poll = source.poll()
    assert (bool(poll.detail), len(poll.notices)) == (True, 1)
    imds.silent = set()
    assert source.poll().detail == ""


@pytest.mark.fault(73)
@pytest.mark.parametrize("status", [403, 500])
def test_trouble_on_one_path_does_not_slow_the_look_at_the_others(imds: Imds, status: int) -> None:
    imds.answers[LIFECYCLE_PATH] = (status, "")
    poll = _source(imds).poll()
    assert poll.detail
    assert next_delay_s(poll.state, failures=9, interval_s=5.0) == 5.0


@pytest.mark.fault(74)
def test_a_token_that_never_comes_is_explained_by_the_hop_limit(imds: Imds) -> None:
    imds.silent = {TOKEN_PATH}
    poll = _source(imds, timeout_s=0.5).poll()
    assert poll.state == "failing"
    assert HOP_LIMIT_HINT in poll.detail


def test_redirects_are_not_followed(imds: Imds) -> None:
    with running_imds() as other:
        imds.answers[SPOT_PATH] = (302, f"{other.endpoint}{SPOT_PATH}")
        poll = _source(imds).poll()
        assert poll.notices == ()
        assert poll.detail
        assert other.requests == []


@pytest.mark.parametrize("body", ["", "<html>", "[1]", "[" * 100_000, "\x00", '"terminate"'])
def test_garbage_is_trouble_and_no_notice(imds: Imds, body: str) -> None:
    imds.answers[SPOT_PATH] = (200, body)
    poll = _source(imds).poll()
    assert poll.notices == ()
    assert poll.detail


def test_an_action_that_is_not_known_is_taken_for_the_worst(imds: Imds) -> None:
    imds.answers[SPOT_PATH] = (200, json.dumps({"action": "evaporate", "time": iso(imds.wall() + 50)}))
    (notice,) = _source(imds).poll().notices
    assert notice.action == "terminate"


@pytest.mark.fault(78)
def test_a_proxy_in_the_environment_is_never_asked(imds: Imds, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_imds() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.endpoint)
        monkeypatch.setenv("no_proxy", "")
        imds.spot("terminate", in_s=60)
        poll = _source(imds).poll()
        assert (len(poll.notices), poll.state) == (1, "answers")
        assert proxy.requests == []


@pytest.mark.fault(77)
def test_an_endpoint_in_the_environment_is_ignored_and_the_warning_names_the_option() -> None:
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}
    endpoint, warning = choose_endpoint("", environ)
    assert endpoint == ENDPOINT
    assert "http://127.0.0.1:9" in warning
    assert "--metadata-endpoint" in warning
    assert choose_endpoint("http://127.0.0.1:9/", environ) == ("http://127.0.0.1:9", "")


def test_ipv6_and_disabled_are_honoured() -> None:
    assert choose_endpoint("", {}) == (ENDPOINT, "")
    assert choose_endpoint("", {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6"})[0] == ENDPOINT_IPV6
    assert choose_endpoint("", {"AWS_EC2_METADATA_DISABLED": "true"})[0] == ""
    assert choose_endpoint("http://127.0.0.1:9", {"AWS_EC2_METADATA_DISABLED": "true"})[0] == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1",
        "https://127.0.0.1",
        "http://",
        "http://h/path",
        "http://h?x=1",
        "http://h:99999",
        "http://h:port",
        "http://[::1",
    ],
)
def test_an_explicit_endpoint_is_checked(endpoint: str) -> None:
    with pytest.raises(SettingError, match="metadata endpoint"):
        choose_endpoint(endpoint, {})


def test_the_instance_is_named(imds: Imds) -> None:
    assert _source(imds).text(INSTANCE_PATH) == "i-0123456789abcdef0"
    imds.token_status = 403
    assert _source(imds).text(INSTANCE_PATH) == ""


def test_debug_logging_of_an_absent_service_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    from spotckpt.notices.watch import Watcher

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        source = Ec2Metadata(f"http://127.0.0.1:{unused.getsockname()[1]}", timeout_s=0.5)
        with caplog.at_level(logging.DEBUG):
            watcher = Watcher(source, lambda _: None, interval_s=0.01)
            watcher.start()
            assert watcher.first_look.wait(60)
            watcher.stop(timeout_s=60)
    records = [record for record in caplog.records if record.name.startswith("spotckpt")]
    assert [(record.levelname, record.getMessage()[:16]) for record in records] == [("DEBUG", "no EC2 metadata ")]
