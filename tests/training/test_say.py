"""Counting lines: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import os
import sys
import time

import pytest

from spotckpt.training.say import Arriving, Progress, say


def arrive(total_bytes: int) -> None:
    arriving = Arriving("reading x", total_bytes, lambda: None)
    arriving(total_bytes // 4)
    time.sleep(0.6)  # what is over at once shows nothing
    for _ in range(3):
        arriving(total_bytes // 4)


def test_a_terminal_shows_how_much_came_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        arrive(200_000_000)
        shown = ""
        while "\n" not in shown:
            shown += os.read(master, 10_000).decode()
    os.close(master)
    assert "\rspotckpt: reading x: 100 of 200 MB, " in shown
    assert "200 of 200 MB" in shown and " MB/s" in shown and shown.endswith("\n")


def test_a_pipe_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    arrive(200_000_000)
    assert pipe.getvalue() == ""


def test_a_closed_standard_error_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for closed in (open(os.devnull, "w"), None):  # noqa: PTH123, SIM115
        if closed is not None:
            closed.close()
        monkeypatch.setattr(sys, "stderr", closed)
        say("nobody hears it")
        Progress("uploading", "bytes")(1, 1)


def test_what_the_check_raises_ends_it() -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Arriving("reading x", 10, check)(1)
