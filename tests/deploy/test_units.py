"""What systemd itself finds to say against the units, without running them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy/systemd"
AGENT, TRAIN = UNITS / "spotckpt-agent.service", UNITS / "spotckpt-train@.service"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (apt-get install systemd)"
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
def test_the_units_are_understood_to_the_last_word(tmp_path):
    for unit in (AGENT, TRAIN):
        # whose programs must be there, too
        text = unit.read_text().replace("/opt/spotckpt/bin/spotckpt", sys.executable)
        (tmp_path / unit.name.replace("@", "@resnet")).write_text(text)
    found = analyze("verify", "--recursive-errors=no", "--man=no", *map(str, tmp_path.iterdir()))
    assert (found.returncode, found.stderr) == (0, "")


@needs_systemd
def test_the_agent_is_locked_in():
    found = analyze("security", "--offline=true", "--threshold=20", str(AGENT))
    assert found.returncode == 0, found.stdout + found.stderr


def test_stopping_goes_from_the_training_to_the_agent_to_the_network():
    agent, train = (settings(unit)["Unit"] for unit in (AGENT, TRAIN))
    assert "spotckpt-agent.service" in train["After"].split()
    assert "spotckpt-agent.service" in train["Wants"].split()
    assert "Requires" not in train  # an agent that crashes must not take the training along
    assert {"network.target", "network-online.target"} <= set(agent["After"].split())


def test_a_stop_by_systemd_waits_longer_than_the_agent_does():
    service = settings(AGENT)["Service"]
    assert service["TimeoutStopSec"] == "100s"  # --stop-grace is 90 s by default
    assert service["Type"] == "notify"
    assert "PrivateUsers" not in service  # it would hide who connects to the socket


def settings(unit: Path) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit.read_text())
    return parser
