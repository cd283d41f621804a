"""Letting the Auto Scaling group go on: where the names come from, what is tried again, and until when."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from spotckpt.agent.departure import Held, depart, find_held
from spotckpt.agent.options import AgentOptions
from spotckpt.deadline import Deadline
from tests.support.imds import INSTANCE_PATH, Imds, running_imds
from tests.support.proxy import Proxy, answer

TAGS = "/latest/meta-data/tags/instance"
DONE = b"<CompleteLifecycleActionResponse><CompleteLifecycleActionResult/></CompleteLifecycleActionResponse>"


def refused(code: str) -> bytes:
    return f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>".encode()


@pytest.fixture
def imds() -> Iterator[Imds]:
    """Of an instance whose tags are shown."""
    with running_imds() as served:
        served.answers |= {
            INSTANCE_PATH: (200, "i-1"),
            f"{TAGS}/aws:autoscaling:groupName": (200, "group"),
            f"{TAGS}/spotckpt:lifecycle-hook": (200, "hook"),
            "/latest/meta-data/placement/region": (200, "eu-central-1"),
        }
        yield served


@pytest.fixture
def scaling(monkeypatch) -> Iterator[Proxy]:
    """Auto Scaling's API, which answers as the test says; nothing is behind it."""
    with Proxy("http://127.0.0.1:9") as served:
        monkeypatch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", served.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield served


def test_the_metadata_tell_all_names(imds):
    assert find_held(AgentOptions(), imds.endpoint) == Held("i-1", "group", "hook", "eu-central-1")


def test_options_and_environment_count_for_more(imds, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    options = AgentOptions(lifecycle_hook="mine", auto_scaling_group="ours")
    assert find_held(options, imds.endpoint) == Held("i-1", "ours", "mine", "us-west-2")


def test_what_nobody_tells_is_named(imds, caplog):
    del imds.answers[f"{TAGS}/spotckpt:lifecycle-hook"]
    assert not depart(AgentOptions(), imds.endpoint, None)
    assert "unknown is its lifecycle hook (tag spotckpt:lifecycle-hook, or --lifecycle-hook)" in caplog.text


@pytest.mark.parametrize(("status", "code"), [(503, "ServiceUnavailable"), (400, "Throttling")])
def test_trouble_that_passes_is_tried_again(imds, scaling, caplog, status, code):
    scaling.on("POST", "/", answer(status, refused(code)))
    scaling.on("POST", "/", answer(200, DONE))
    caplog.set_level(logging.INFO, "spotckpt")
    assert depart(AgentOptions(), imds.endpoint, None)
    assert "lets i-1 go" in caplog.text
    assert len(scaling.seen) == 2


def test_a_refusal_is_not_argued_with(imds, scaling, caplog):
    scaling.on("POST", "/", answer(403, refused("AccessDenied")))
    assert not depart(AgentOptions(), imds.endpoint, None)
    assert "lifecycle hook hook of group group is not completed" in caplog.text
    assert "AccessDenied" in caplog.text
    assert len(scaling.seen) == 1


def test_at_the_deadline_it_is_given_up(imds, scaling, caplog):
    scaling.on("POST", "/", answer(503, refused("ServiceUnavailable")), times=100)
    assert not depart(AgentOptions(), imds.endpoint, Deadline.after(2))
    assert "the group waits for the hook's time-out" in caplog.text
    assert len(scaling.seen) == 2  # at once, and a second later; the next would come too late
