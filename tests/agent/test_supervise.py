"""`spotckpt exec`, as a process, around trainers that end in every way. Those of torch are in tests/training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from spotckpt.agent.processes import Process as Seen
from spotckpt.agent.processes import start_time
from tests.agent.harness import WAIT_S, Machine, Process, Trainer, heartbeat
from tests.cli.command import in_process
from tests.support.checker import check
from tests.support.proxy import Proxy, stall
from tests.support.servers import S3Env, wait_until

EXEC = (sys.executable, "-m", "spotckpt", "exec", "--poll-interval=0.2")
NUMBERS = 500_000


def run(here: Machine, *options: str, command: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """`spotckpt exec`, to its end."""
    environment = {**os.environ, **here.environment}
    given = [*EXEC, *options, *(["--", *command] if command else [])]
    return subprocess.run(given, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)


def start(here: Machine, *options: str, command: Sequence[str]) -> Process:
    """`spotckpt exec`, around something that is no trainer."""
    found = Process([*EXEC, *options, "--", *command], here.environment, log=here.path / "exec.log")
    here.processes.append(found)
    return found


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def agent_of(trainer: Trainer) -> Seen:
    pid = trainer.hello["agent_pid"]
    return Seen(pid, start_time(pid) or 0)


@pytest.mark.parametrize(
    ("restarts", "text", "status"),
    [(1, "exit 0", 0), (0, "kill -SEGV $$", 139), (1, "exit 76", 76), (1, "exit 75", 75)],
)
def test_the_status_is_the_command_s_own(here: Machine, restarts: int, text: str, status: int) -> None:
    """Those that tell of an end that is no failure begin nothing again."""
    done = run(here, f"--restarts={restarts}", command=shell(text))
    assert done.returncode == status, done.stderr
    assert "again" not in done.stderr
    assert not (here.runtime / "agent.sock").exists()


def test_what_cannot_be_run_is_named_and_no_agent_is_started(
    here: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in here.environment.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "script"
    script.touch(0o600)
    for command, status, words in (
        (["no-such-command"], 127, "no-such-command is not found"),
        ([str(script)], 126, "is not executable"),
        ([], 64, "no command to run"),
    ):
        refused = in_process("exec", "--", *command)
        assert refused.status == status
        assert words in refused.err and "spotckpt exec -- python train.py" in refused.err
        assert len(refused.err.splitlines()) == 1
    assert in_process("exec", "--sigterm-grace=soon", "--", "true").status == 11
    assert in_process("exec", "--restarts=-1", "--", "true").status == 64
    assert not here.spool.exists()
    script.chmod(0o700)
    script.write_bytes(b"\x7fELF and nothing more")
    done = run(here, command=[str(script)])
    assert done.returncode == 126 and "is it a program" in done.stderr


@pytest.mark.fault(7)
def test_what_a_dead_command_had_sealed_is_committed_before_the_end(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url, bytes_per_s=3.0e6) as proxy:
        # the grace is for signals: it does not cut short what a dead command left
        under = (*EXEC, "--sigterm-grace=500ms")
        trainer = here.trainer(under=under, **s3_env.behind(proxy.url).environment)
        agent = agent_of(trainer)
        trainer.open(s3_env.uri)
        staged = trainer.stage(s3_env.uri, 5, numbers=NUMBERS)["snapshot"]
        proxy.wait_for("PUT", r"/packs/.*safetensors")
        os.kill(trainer.hello["pid"], signal.SIGKILL)
        assert trainer.wait() == 137
    assert not agent.alive
    assert here.tokens() == []
    assert str(check(s3_env.uri, [staged])) == staged


def test_a_signal_ends_the_waiting_for_what_a_dead_command_left(here: Machine, s3_env: S3Env) -> None:
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "/packs/", stall(), times=10)
        under = (*EXEC, "--sigterm-grace=500ms")
        trainer = here.trainer(under=under, **s3_env.behind(proxy.url).environment)
        trainer.open(s3_env.uri)
        trainer.stage(s3_env.uri, 5)
        os.kill(trainer.hello["pid"], signal.SIGKILL)
        wait_until(lambda: "waiting until what the command left" in trainer.log_text)
        trainer.send(signal.SIGINT)
        assert trainer.wait() == 137
    assert here.tokens() != [], "the next agent goes on with it"


def test_a_failure_is_tried_again_so_many_times(here: Machine, tmp_path: Path) -> None:
    count = shell(f"echo x >> {tmp_path}/starts; [ $(wc -l < {tmp_path}/starts) -ge 3 ]")
    done = run(here, "--restarts=1", command=count)
    assert done.returncode == 1
    assert "starting it again (1 of 1)" in done.stderr
    assert run(here, "--restarts=5", command=count).returncode == 0
    assert (tmp_path / "starts").read_text() == "x\n" * 3


def test_nothing_is_started_again_under_a_notice_and_the_status_is_75(here: Machine, uri: str) -> None:
    trainer = here.trainer(under=(*EXEC, "--restarts=5"))
    trainer.open(uri)
    staged = trainer.stage(uri, 1)["snapshot"]
    with here.client() as client:
        client.call("notify", timeout=60, action="stop", in_s=60)
    trainer.wait_event("notice")
    os.kill(trainer.hello["pid"], signal.SIGKILL)
    assert trainer.wait() == 75
    assert "starting it again" not in trainer.log_text
    assert str(check(uri, [staged])) == staged


def test_a_notice_given_during_the_pause_is_heard_too(here: Machine) -> None:
    supervisor = start(here, "--restarts=5", command=["false"])
    wait_until(lambda: "looking after it again in 2 s" in supervisor.log_text)
    supervisor.send(signal.SIGSTOP)  # the pause shall not be over before the notice is given
    with here.client() as client:
        client.call("notify", timeout=60, action="terminate")
    supervisor.send(signal.SIGCONT)
    assert supervisor.wait() == 75
    assert supervisor.log_text.count("starting it again") == 1


@pytest.mark.parametrize(("last", "status"), [("INT", 21), ("TERM", 75)])
def test_signals_are_the_command_s(here: Machine, tmp_path: Path, last: str, status: int) -> None:
    names = ["USR1", "USR2", "HUP"]
    traps = "; ".join(f"trap 'touch {tmp_path}/{name}' {name}" for name in names)
    waiting = f"{traps}; trap 'exit 21' {last}; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    supervisor = start(here, "--restarts=0", command=shell(waiting))
    wait_until((tmp_path / "ready").exists)
    for name in names:
        supervisor.send(signal.Signals[f"SIG{name}"])
        wait_until((tmp_path / name).exists, what=f"{name} gets there")
    supervisor.send(signal.Signals[f"SIG{last}"])
    assert supervisor.wait() == status


@pytest.mark.fault(3)
def test_a_trainer_that_a_shell_hides_hears_of_sigterm_from_the_agent(here: Machine, uri: str, root: Path) -> None:
    hidden = (*EXEC, "--sigterm-grace=60s", "--", "sh", "-c", 'trap : TERM; "$@"; true', "sh")
    trainer = here.trainer(under=hidden)
    trainer.open(uri)
    trainer.send(signal.SIGTERM)
    event = trainer.wait_event("notice")
    assert (event["kind"], event["final"], event["plan"]) == ("signal", True, "last")
    assert 30 < event["seconds_left"] < 60
    staged = trainer.stage(uri, 4)["snapshot"]
    assert trainer.call("close", uri=uri, deadline_s=50)["committed"] == staged
    assert trainer.popen.stdin is not None
    trainer.popen.stdin.close()
    assert trainer.wait() == 75
    assert heartbeat(root, 1)["released"]
    assert str(check(uri, [staged])) == staged


@pytest.mark.fault(3)
def test_a_command_that_ignores_sigterm_ends_with_the_grace(here: Machine, tmp_path: Path) -> None:
    stubborn = shell(f"trap '' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done")
    supervisor = start(here, "--sigterm-grace=1s", "--restarts=3", command=stubborn)
    wait_until((tmp_path / "ready").exists)
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 75
    assert "it is killed" in supervisor.log_text
    assert not (here.runtime / "agent.sock").exists()


@pytest.mark.fault(6)
def test_an_agent_that_is_killed_is_replaced_and_goes_on(here: Machine, uri: str) -> None:
    trainer = here.trainer(under=EXEC)
    before = agent_of(trainer)
    trainer.open(uri)
    first = trainer.stage(uri, 1)["snapshot"]
    trainer.wait_committed(first)
    os.kill(before.pid, signal.SIGKILL)
    trainer.wait_event("lost")
    wait_until(lambda: f"agent {before.pid} serves" in trainer.log_text.rpartition("another one is started")[0])
    wait_until(lambda: " serves " in trainer.log_text.rpartition("another one is started")[2])
    assert trainer.reply(trainer.start("connect"))["agent_pid"] != before.pid
    trainer.call("attach", uri=uri, attempt=1)
    second = trainer.stage(uri, 2, wait_s=60)["snapshot"]
    os.kill(trainer.hello["pid"], signal.SIGKILL)
    assert trainer.wait() == 137
    assert str(check(uri, [first, second])) == second


def test_an_agent_that_runs_already_is_used_and_goes_on_afterwards(here: Machine) -> None:
    agent = here.agent()
    trainer = here.trainer(under=EXEC)
    assert trainer.hello["agent_pid"] == agent.pid
    os.kill(trainer.hello["pid"], signal.SIGKILL)
    assert trainer.wait() == 137
    assert agent.popen.poll() is None
    assert here.runs() == []


ORPHANS = """
import os, pathlib, sys, time
for _ in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
for _ in range(5):
    os.wait()
def zombies():
    states = [path.read_text().rpartition(")")[2].split() for path in pathlib.Path("/proc").glob("[0-9]*/stat")]
    return [state for state in states if state[0] == "Z"]
end = time.monotonic() + 10
while zombies() and time.monotonic() < end:
    time.sleep(0.05)
print(os.getpid(), os.getppid(), len(zombies()))
"""


def test_as_pid_1_it_reaps_what_nobody_else_does(here: Machine) -> None:
    isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make PID namespaces")
    command = [*isolated, *EXEC, "--", sys.executable, "-c", ORPHANS]
    environment = {**os.environ, **here.environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    pid, parent, zombies = json.loads(f"[{done.stdout.replace(' ', ',')}]")
    assert (pid > 1, parent, zombies) == (True, 1, 0)
