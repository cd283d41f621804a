"""The agent's log: a line an event, with fields that a program can read."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from spotckpt.agent.log import LOG_FORMATS, LogFormat, about, fields, log_to_stderr
from spotckpt.errors import Denied
from tests.agent.harness import Machine, Process
from tests.support.servers import wait_until


@contextmanager
def written(log_format: LogFormat) -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger, and what it writes."""
    logger = logging.getLogger("spotckpt")
    before = logger.handlers[:], logger.level, logger.propagate
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        log_to_stderr(log_format)
        yield logging.getLogger("spotckpt.agent.test"), stream
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


def read(line: str) -> dict[str, str]:
    """A line of either format, every value as text."""
    if line.startswith("{"):
        return {name: str(value) for name, value in json.loads(line).items()}
    return dict(pair.split("=", 1) for pair in shlex.split(line))


@pytest.mark.parametrize("log_format", LOG_FORMATS)
def test_every_event_is_one_line_with_its_fields(log_format):
    with written(log_format) as (logger, stream):
        with about(run="s3://b/r", attempt=3):
            logger.info("%s is committed", "a0003", extra=fields(snapshot="a0003", bytes=7, seconds=0.5, none=None))
            with about(snapshot="a0004"):
                logger.warning("it failed: %s", Denied("put", "s3://b/r/k", 'answered "403"\nand more', hint="a=b"))
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logger.exception("a fault")
        logger.debug("quiet")
    first, second, third = map(read, stream.getvalue().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "message": "a0003 is committed",
        "run": "s3://b/r",
        "attempt": "3",
        "snapshot": "a0003",
        "bytes": "7",
        "seconds": first["seconds"],
    }
    assert float(first["seconds"]) == 0.5
    shown = [second[name] for name in ("level", "error", "status", "snapshot")]
    assert shown == ["warning", "Denied", "24", "a0004"]
    assert "run" not in third
    assert third["exception"].startswith("Traceback")


@pytest.mark.parametrize("log_format", LOG_FORMATS)
def test_what_is_written_holds_no_secret_of_an_address_or_of_the_environment(log_format, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-key")
    with written(log_format) as (logger, stream), about(run="sftp://me:canary-password@host/run"):
        logger.info("GET https://h/k?X-Amz-Signature=canary-signature with canary-key")
        try:
            raise ValueError("canary-key")
        except ValueError:
            logger.exception("a fault")
    assert len(stream.getvalue().splitlines()) == 2
    assert "canary" not in stream.getvalue()


@pytest.mark.parametrize("log_format", LOG_FORMATS)
def test_the_agents_own_log_tells_of_a_run(log_format, here: Machine, uri):
    agent = here.start_agent(f"--log-format={log_format}")
    here.wait_for(agent)
    trainer = here.trainer()
    trainer.open(uri)
    snapshot = trainer.stage(uri, 5)["snapshot"]
    trainer.wait_committed(snapshot)
    trainer.reply(trainer.start("call", op="close", fields={"uri": uri, "deadline_s": 60}))
    wait_until(lambda: "is released" in agent.log_text, what="the last line")
    lines = [read(line) for line in agent.log_text.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    [committed] = [line for line in lines if "is committed" in line["message"]]
    assert (committed["run"], committed["attempt"], committed["snapshot"]) == (uri, "1", snapshot)
    assert int(committed["bytes"]) >= 4000
    assert float(committed["seconds"]) < 30
    told = [line["message"] for line in lines if line.get("run") == uri]
    for event in ("is claimed", "continues nothing", "is committed", "is released"):
        assert any(event in message for message in told), event


@pytest.mark.parametrize("verb", [("agent",), ("exec", "--", "true")], ids=lambda verb: verb[0])
def test_the_commands_take_the_format(verb, here: Machine):
    command = [sys.executable, "-m", "spotckpt", verb[0], "--log-format", "json", *verb[1:]]
    process = Process(command, here.environment, log=here.path / "log")
    here.processes.append(process)
    wait_until(lambda: '"message": "agent ' in process.log_text, what=f"JSON in {process.log_text}")


def test_an_unknown_format_is_refused(here: Machine):
    agent = here.start_agent("--log-format=xml")
    assert agent.wait() == 2
    assert "key=value" in agent.log_text
