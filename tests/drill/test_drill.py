"""`spotckpt drill` on real trainings: six that are not what they seem, each named right, and some that are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drill.forks import forks

SCRIPTS = Path(__file__).parent / "scripts"
TIMEOUT_S = 280


def drill(folder: Path, *arguments: str, json_wanted: bool = True) -> subprocess.CompletedProcess[str]:
    temporary = folder / "t"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "spotckpt", "drill", *(["--json"] if json_wanted else []), *arguments],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert not list(temporary.glob("spotckpt-*")), "nothing is left"
    return done


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("d")  # a short name: sockets' paths are limited


@pytest.fixture
def python(folder: Path) -> Iterator[list[str]]:
    """A `python` that has torch imported already."""
    with forks(folder) as command:
        yield command


PLANTED = {
    "unseeded": ("unseeded generator", "numpy's global generator (np.random)", "at step 1"),
    "ema": ("untracked copy", "average", "average.0.weight after the resume"),
    "accumulator": ("local accumulator", "total", "total after the resume"),
    "kernels": ("nondeterministic kernels", "table/weight", "the tensor table/weight at step "),
    "data": ("data changed", "data.npy", "the batch at step"),
    "scheduler": ("untracked state", "scheduler", "scheduler.last_epoch after the resume"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_named(folder, python, name):
    cause, named, first = PLANTED[name]
    kind = "sigterm" if name == "accumulator" else "kill-trainer"
    command = [sys.executable] if name == "unseeded" else python  # forks have their generators in common
    done = drill(folder, "--interruptions", "1", "--kinds", kind, "--", *command, str(SCRIPTS / f"{name}.py"))
    assert done.returncode == 1, done.stdout + done.stderr
    finding = json.loads(done.stdout)["finding"]
    assert finding["cause"] == cause, finding
    assert finding["name"].endswith(named)
    assert first in finding["first"]
    if cause.startswith("untracked"):
        assert f"run.track({named}={named})" in finding["remedy"]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (["--resume", "{uri}"], ("kill-upload", "kill-trainer")),
        (["--workers", "2"], ("notice", "kill-agent", "sigterm")),
    ],
)
def test_a_clean_training_is_the_same_whatever_happens_to_it(folder, python, options, kinds):
    done = drill(
        folder,
        *("--interruptions", str(len(kinds)), "--kinds", ",".join(kinds), "--seed", "4", "--"),
        *(*python, str(SCRIPTS / "clean.py"), *options),
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["same"]
    assert found["finding"] is None
    assert {one["kind"] for one in found["interruptions"]} == set(kinds)
    assert len(found["starts"]) == 1 + sum(kind != "kill-agent" for kind in kinds)
    assert found["starts"][-1]["last_step"] == found["steps"] == 24
    assert found["compared"]["batches"] == 24
    assert all(one["resumed_from"] for one in found["starts"][1:])


def test_a_program_that_fails_by_itself_is_shown(folder):
    (folder / "broken.py").write_text("print('on my way')\nraise ValueError('no such file: train.csv')\n")
    done = drill(folder, "--", sys.executable, "broken.py", json_wanted=False)
    assert done.returncode == 60
    assert "no such file: train.csv" in done.stderr
    assert "ended with status 1, and opened no run" in done.stderr


def test_a_run_that_is_not_the_drills_is_never_touched(folder, python):
    own = folder / "production"
    (folder / "own.py").write_text(
        f"import spotckpt\nwith spotckpt.open_run({str(own)!r}) as run:\n    for _ in run.steps(3):\n        pass\n"
    )
    done = drill(folder, "--", *python, "own.py", json_wanted=False)
    assert done.returncode == 60
    assert "the program opens file://" in done.stderr
    assert not own.exists()
