"""The drill's child processes: what they say, and that they really end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from spotckpt.drill.process import Child, Output, wait_until
from spotckpt.errors import DrillFailed


def child(tmp_path, code, output):
    started = Child("child", log_path=tmp_path / "child.log")
    started.start([sys.executable, "-u", "-c", code], environment=os.environ, on_line=output.add)
    return started


def test_a_child_is_read_and_its_status_known(tmp_path):
    output = Output()
    started = child(tmp_path, "print('hello 7'); raise SystemExit(3)", output)
    assert started.wait(60) == 3
    found = output.find(r"hello (\d)")
    assert found is not None
    assert found[1] == "7"
    assert started.tail() == "hello 7"


def test_a_program_that_is_not_there_is_one_error(tmp_path):
    started = Child("child", log_path=tmp_path / "child.log")
    with pytest.raises(DrillFailed, match="no-such-program cannot be started: No such file"):
        started.start(["no-such-program"], environment=os.environ, on_line=print)
    started.kill()


def test_a_killed_child_is_gone_and_killing_it_again_is_harmless(tmp_path):
    output = Output()
    started = child(tmp_path, "print('up', flush=True); import time; time.sleep(60)", output)
    wait_until("up", lambda: output.find("up"), 60)
    pid = started.pid
    started.kill()
    started.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_waiting_ends_when_the_child_dies_and_shows_what_it_said(tmp_path):
    class Slow(Output):
        def add(self, line: str) -> None:
            time.sleep(0.5)

    started = child(tmp_path, "print('well'); print('so long'); raise SystemExit(4)", Slow())
    with pytest.raises(DrillFailed, match=r"(?s)child ended with status 4 before the moon.*so long"):
        wait_until("the moon", lambda: None, 60, alive=[started])
    started.kill()


def test_waiting_ends_by_itself():
    with pytest.raises(DrillFailed, match="no sign of the moon"):
        wait_until("the moon", lambda: None, 0.05)


def test_a_killed_child_takes_along_what_it_started(tmp_path):
    output = Output()
    code = "import subprocess as s; p = s.Popen(['sleep', '60']); print('grandchild', p.pid, flush=True); p.wait()"
    started = child(tmp_path, code, output)
    found = wait_until("the grandchild", lambda: output.find(r"grandchild (\d+)"), 60)
    started.kill()
    wait_until("its end", lambda: is_gone(found[1]), 60)


def test_what_a_child_leaves_when_it_ends_goes_with_it(tmp_path):
    output = Output()
    code = "import subprocess as s; print('left', s.Popen(['sleep', '600']).pid, flush=True)"
    started = child(tmp_path, code, output)
    assert started.wait(60) == 0
    found = output.find(r"left (\d+)")
    assert found is not None
    wait_until("its end", lambda: is_gone(found[1]), 60)


def is_gone(pid):
    """Or nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
