"""`spotckpt demo` for real, and what it does when something is wrong."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from spotckpt.cli.demo import report
from spotckpt.demo.compare import Verdict, compare, read_state
from spotckpt.drill.screen import Screen
from tests.support.servers import wait_until

TIMEOUT_S = 540


class Demo:
    """The demo as a process of its own, with a directory of its own for temporary files."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.temporary = directory / "t"
        self.temporary.mkdir()
        self.out = directory / "out"
        self.mark = f"DEMO_UNDER_TEST={self.temporary}"
        environment = {**os.environ, "TMPDIR": str(self.temporary), "DEMO_UNDER_TEST": str(self.temporary)}
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "spotckpt", "demo", *options],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def said(self, words: str) -> bool:
        return words in self.out.read_text()

    def family(self) -> list[int]:
        """Every process that inherited our mark, the demo's own left out."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return [pid for pid in found if pid != self.process.pid]


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("d")  # a short name: sockets' paths are limited


@pytest.mark.localstack
@pytest.mark.timeout(TIMEOUT_S + 30)
def test_the_demo_passes_on_localstack_and_leaves_nothing(directory, localstack_server):
    before = localstack_server.client.list_buckets()["Buckets"]
    play_through(directory, "--s3-port", str(localstack_server.port))
    assert localstack_server.client.list_buckets()["Buckets"] == before


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_the_demo_passes_and_leaves_nothing(directory):
    kept = play_through(directory)
    _another_ending_is_found(kept)


def play_through(directory: Path, *options: str) -> Path:
    kept = directory / "kept"
    demo = Demo(directory, "--keep", str(kept), "--seed", "3", *options)
    assert demo.process.wait(TIMEOUT_S) == 0, demo.out.read_text()
    text = demo.out.read_text()
    for words in (
        "spot/instance-action answers",
        "left with status 75",
        "INCOMPLETE upload of run/packs/a0002-",
        "SIGKILL to trainer and agent",
        "attempt 2 is recorded as continued from a0001-",
        "attempt 3 is recorded as continued from a000",
    ):
        assert words in " ".join(text.split()), "lines are folded, so blanks are all alike"
    assert re.search(r"^PASS: .* no byte differs", text.splitlines()[-1])
    assert max(map(len, text.splitlines())) <= 100
    assert demo.family() == []
    assert list(demo.temporary.iterdir()) == []

    check = [sys.executable, "-m", "spotckpt", "verify", str(kept / "bucket" / "run")]
    assert subprocess.run(check, timeout=120, capture_output=True, check=False).returncode == 0
    return kept


def _another_ending_is_found(kept: Path) -> None:
    """The kept end states are equal; with one bit of one of them changed they are not."""
    plain, resumed = read_state(kept / "plain.npz"), read_state(kept / "resumed.npz")
    assert compare(plain, resumed).difference == ""
    for name in plain:
        data = bytearray(resumed[name].tobytes())
        if data:
            data[len(data) // 2] ^= 1
            changed = np.frombuffer(bytes(data), resumed[name].dtype).reshape(resumed[name].shape)
            assert compare(plain, {**resumed, name: changed}).difference.startswith(name)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_stopped_takes_everything_with_it(directory, number, status):
    demo = Demo(directory)
    wait_until(lambda: demo.said("1. A training"), timeout_s=60, what="the first chapter")
    wait_until(lambda: len(demo.family()) >= 2, timeout_s=60, what="its children")
    demo.process.send_signal(number)
    assert demo.process.wait(60) == status
    assert "Traceback" not in demo.out.read_text()
    assert demo.family() == []
    assert list(demo.temporary.iterdir()) == []


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def screen(out: io.StringIO) -> Screen:
    return Screen(Console(width=100, color_system=None, file=out))


def test_a_difference_is_a_failure_with_a_status(screen, out):
    verdict = Verdict("model/fc.weight[2, 1] is 9.0 in the plain run, 8.5 in the resumed one", {"model": 3}, 12)
    assert report(verdict, screen) == 1
    assert f"FAIL: {verdict.difference}" in out.getvalue()


def test_equal_ends_pass(screen, out):
    assert report(Verdict("", {"model": 3}, 3 << 20), screen) == 0
    assert "PASS: 3.1 MB compared, no byte differs" in out.getvalue()


def test_long_lines_are_folded_under_themselves(screen, out):
    screen.say("bucket", "word " * 60)
    lines = out.getvalue().splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 100
    assert lines[1].startswith(" " * 21 + "word")


def test_on_a_terminal_that_is_far_too_narrow_everything_is_still_said(out):
    screen = Screen(Console(width=12, color_system=None, file=out))
    screen.say("bucket", "word " * 60)
    screen.pairs([("note", "word " * 60)])
    assert out.getvalue().split().count("word") == 120
