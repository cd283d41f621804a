"""What a course makes of trainings that do not behave as planned; agents are real, the training is not."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from spotckpt.drill.course import Course
from spotckpt.drill.places import Folder
from spotckpt.drill.plan import Interruption
from spotckpt.drill.screen import Screen
from spotckpt.errors import DrillFailed

STUB = Path(__file__).parent / "scripts/stub.py"


@pytest.fixture
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    work = tmp_path_factory.mktemp("d")  # a short name: sockets' paths are limited
    screen = Screen(Console(file=io.StringIO()), quiet=True)
    return Course(screen, Folder(work / "bucket"), work, work)


def stub(*, status: int, step: int) -> list[str]:
    return [sys.executable, "-S", "-E", str(STUB), str(status), str(step)]


def test_a_training_that_fails_once_its_agent_was_killed_was_not_killed_itself(course):
    killed = Interruption("kill-agent", hold=8, saves=(4,))
    with pytest.raises(DrillFailed, match="start 1 ended with status 3"):
        list(course.interrupted(stub(status=3, step=8), [killed]))
    assert course.happened == [killed]


@pytest.mark.parametrize("status", [3, 75])
def test_a_training_that_ends_before_it_was_to_be_killed_has_failed(course, status):
    with pytest.raises(DrillFailed, match=f"start 1 ended with status {status}"):
        list(course.interrupted(stub(status=status, step=5), [Interruption("kill-trainer", hold=8, saves=(4,))]))
    assert course.happened == []


def test_what_a_training_has_passed_before_it_left_happens_later(course):
    planned = [Interruption("sigterm", hold=3), Interruption("kill-trainer", hold=8, saves=(5,))]
    lives = [told.life for told in course.interrupted(stub(status=75, step=9), planned)]
    assert [(one.kind, one.hold) for one in course.happened] == [("sigterm", 3), ("kill-trainer", 13)]
    assert [(life.last_step, life.ended) for life in lives] == [(9, False), (13, False), (30, True)]
