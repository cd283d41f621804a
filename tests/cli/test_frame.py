"""The frame of the command line: help, versions, statuses, and what must not be imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from spotckpt import __version__
from spotckpt.cli.main import VERBS, cli
from tests.cli.command import in_process, on_terminal, spotckpt


def test_help_lists_every_verb_and_the_statuses():
    shown = spotckpt("--help")
    assert shown.status == 0
    for name, verb in VERBS.items():
        assert f"  {name}" in shown.out
        assert verb.summary in shown.out
    assert "Exit statuses" in shown.out
    assert "31" in shown.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_of_its_own(verb):
    shown = in_process(verb, "--help")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: spotckpt {verb}")
    assert max(map(len, shown.out.splitlines())) <= 100


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_says_what_the_verb_says(verb):
    command = cli.get_command(None, verb)  # type: ignore[attr-defined]
    assert command is not None
    assert (command.help or "").partition("\n")[0] == VERBS[verb].summary


def test_version():
    assert spotckpt("--version").out == f"spotckpt, version {__version__}\n"


def test_no_verb_loads_torch(local_run):
    code = (
        "import sys; from spotckpt.cli.main import VERBS, main;"
        "[main([verb, '--help']) for verb in VERBS];"
        "assert [main([verb, sys.argv[1]]) for verb in ('ls', 'show', 'verify')] == [0, 0, 0];"
        "assert main(['status', '--runtime-dir', '/nonexistent']) == 40;"
        "import spotckpt.agent.service, spotckpt.demo.story;"
        "heavy = {'torch', 'boto3', 'moto'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, local_run.uri], check=True, timeout=60, capture_output=True)


def test_help_loads_nothing_that_takes_time():
    code = (
        "import sys; from spotckpt.cli.main import main; main(['--help']); "
        "heavy = {'numpy', 'fsspec', 'rich', 'asyncio', 'spotckpt.store'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["ls"], ["ls", "/a", "/b"], ["ls", "--last", "0", "/a"], ["notify", "explode"], ["--frob"]],
    ids=" ".join,
)
def test_a_wrong_command_line_has_a_status_of_its_own(arguments):
    shown = in_process(*arguments)
    assert (shown.status, shown.out) == (64, "")
    (line,) = shown.err.splitlines()
    assert line.startswith("spotckpt: error: ") and line.endswith(" --help")


def test_another_process_has_the_same_status():
    assert spotckpt("frobnicate") == in_process("frobnicate")


def test_no_command_shows_the_help():
    shown = spotckpt()
    assert "Commands:" in shown.out + shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("verb", ["ls", "show"])
def test_a_reader_that_goes_away_is_no_error(verb, local_run):
    process = subprocess.Popen(
        [sys.executable, "-m", "spotckpt", verb, local_run.uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(60) == 128 + signal.SIGPIPE


def test_ctrl_c_ends_without_a_traceback(tmp_path):
    """A named pipe in place of a record keeps `ls` waiting for as long as it takes."""
    run = tmp_path / "run"
    run.mkdir()
    os.mkfifo(run / "run.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "spotckpt", "ls", str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while True:  # opening the pipe for writing succeeds once somebody reads it
        try:
            pipe = os.open(run / "run.json", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    os.close(pipe)  # not before: closed, it would end the waiting by itself
    assert (process.returncode, out, err) == (130, "", "")


def test_colours_on_a_terminal_only(local_run):
    assert "\x1b[" in on_terminal("ls", local_run.uri).out
    assert "\x1b" not in spotckpt("ls", local_run.uri).out
    assert "\x1b" not in spotckpt("ls", local_run.uri, FORCE_COLOR="1").out
