"""Agent and supervisor in one process tree: for containers, and wherever there is no systemd.

The supervisor is often PID 1 of its PID namespace: then nobody else reaps orphans, no signal has a default action, and
its end is the end of everything. So it waits for signals instead of being interrupted by them, hands them on, and ends
last: when the command has ended, and what it had sealed is committed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spotckpt.agent.client import Client
from spotckpt.agent.options import ALREADY_RUNNING, AgentOptions
from spotckpt.agent.processes import start_time
from spotckpt.agent.spawn import package_environment, sockets
from spotckpt.deadline import Deadline
from spotckpt.errors import AgentError, Interrupted, SettingError, Superseded

NOT_EXECUTABLE = 126
NOT_FOUND = 127
"""What a shell returns for a command that it cannot start."""

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_WATCHED = (*_FORWARDED, signal.SIGCHLD)
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_OVER = (0, Interrupted.exit_status, Superseded.exit_status)
"""Statuses after which nothing is started again here: done; for another machine to go on; another goes on already."""

_LOOK_S = 0.1
_LONG_LOOK_S = 30.0
_AGENT_PAUSE_S = 1.0
_START_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Orders:
    """What to run and how.

    Attributes:
        command: program and arguments.
        agent: for the agent that is started; one that runs already keeps its own.
        restarts: how often the command is started again after a failure.
        grace_s: how long after SIGTERM everything must have ended.
    """

    command: tuple[str, ...]
    agent: AgentOptions
    restarts: int = 0
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        if self.restarts < 0:
            raise SettingError(f"restarts={self.restarts} is less than none", hint="give 0 or more")
        if not 0 < self.grace_s < 86400:
            raise SettingError(f"sigterm_grace={self.grace_s!r} is not between 0 s and a day", hint="give seconds")

    @property
    def inner_grace_s(self) -> float:
        """What the training gets of the grace: the rest is for the end of the agent and of this process."""
        return self.grace_s - min(1.0, self.grace_s / 5)


def supervise(orders: Orders, say: Callable[[str], None]) -> int:
    """Runs the command beside an agent.

    Returns:
        The command's exit status, 128 and the signal's number if one killed it; after a notice or SIGTERM 75, unless it
        is 76; 126 or 127 if it cannot be started.

    Raises:
        AgentError: there is no agent, and none can be started.
    """
    program = orders.command[0]
    if shutil.which(program) is None:
        there = Path(program).exists()
        why = "is not executable" if there else "is not found"
        say(f"error: the command {program} {why}; write it as in: spotckpt exec -- python train.py")
        return NOT_EXECUTABLE if there else NOT_FOUND
    with _signals_waiting():
        supervisor = _Supervisor(orders, say)
        try:
            return supervisor.run()
        finally:
            supervisor.end()


@contextmanager
def _signals_waiting() -> Iterator[None]:
    # A blocked signal stays pending even for PID 1, which has no default actions; threads inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Supervisor:
    def __init__(self, orders: Orders, say: Callable[[str], None]) -> None:
        self._orders = orders
        self._say = say
        self._ended: dict[int, int] = {}
        self._agent = self._command = 0
        self._client: Client | None = None
        self._failure = ""
        self._next_try = Deadline.after(0.0)
        self._is_shared = self._is_told = self._is_leaving = False
        self._stopped_by = 0
        self._deadline = Deadline.after(float("inf"))

    def run(self) -> int:
        """The command, again and again if need be."""
        self._connect()
        status, starts = 128 + self._stopped_by, 0
        while not self._stopped_by and starts <= self._orders.restarts and not (starts and self._notice()):
            if starts:
                self._say(f"starting it again ({starts} of {self._orders.restarts})")
            status = self._run_once()
            starts += 1
            if status in _OVER:
                break
            if starts <= self._orders.restarts and not self._stopped_by:
                self._pause(status, min(2.0 ** (starts - 1), _LONGEST_PAUSE_S))
        is_doomed = self._stopped_by == signal.SIGTERM or self._notice()
        # also instead of 0, which may be that of a shell or of what a pipe ends in: a finished run only says so again
        return Interrupted.exit_status if is_doomed and status != Superseded.exit_status else status

    def end(self) -> None:
        """Sees to it that what the command left is committed, and ends our agent; within the grace if it is counted."""
        if not self._is_shared:
            if self._is_draining() and not self._is_told:
                self._say("waiting until what the command left is committed; another signal ends that")
            self._wait(lambda: self._is_told or not self._is_draining(), look_s=_LOOK_S)
            self._tell_agent()
        self._deadline = self._deadline.within(self._orders.grace_s)
        self._wait(lambda: not self._lives(self._agent))
        for pid in (self._command, self._agent):
            if self._lives(pid):
                os.kill(pid, signal.SIGKILL)
        if self._client is not None:
            self._client.close()

    # ---- the command

    def _run_once(self) -> int:
        command = self._orders.command
        try:
            self._command = os.posix_spawnp(
                command[0], command, self._environment(), setsigmask=(), setsigdef=_IGNORED_BY_PYTHON
            )
        except OSError as error:
            self._say(f"error: the command {command[0]} cannot be run: {error.strerror}; is it a program?")
            return NOT_EXECUTABLE
        self._ended.pop(self._command, None)
        self._wait(lambda: not self._lives(self._command))
        if self._lives(self._command):
            self._say(f"the command has not ended within {self._orders.grace_s:g} s of SIGTERM: it is killed")
            return 128 + signal.SIGKILL
        status = self._ended[self._command]
        return status if status >= 0 else 128 - status

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SPOTCKPT_RUNTIME_DIR": str(self._orders.agent.runtime_dir),
            "SPOTCKPT_SPOOL": str(self._orders.agent.spool_dir),
            "SPOTCKPT_SIGTERM_GRACE": f"{self._orders.inner_grace_s:g}",
        }

    def _pause(self, status: int, seconds: float) -> None:
        self._say(f"the command ended with status {status}; looking after it again in {seconds:g} s")
        over = Deadline.after(seconds)
        self._wait(lambda: over.passed or self._stopped_by != 0, look_s=_LOOK_S)

    # ---- the agent

    def _connect(self) -> None:
        """Finds or starts an agent.

        Raises:
            AgentError: none answers in time, or the one that was started has ended.
        """
        deadline = Deadline.after(_START_TIMEOUT_S)
        while not self._find_agent() and not self._stopped_by:
            self._turn(_LOOK_S)
            status = self._ended.get(self._agent, ALREADY_RUNNING)
            if status != ALREADY_RUNNING or deadline.passed:
                raise AgentError(f"no agent could be started ({self._failure})", hint="its own words are above")
        self._is_shared = self._client is not None and self._client.agent_pid != self._agent

    def _find_agent(self) -> bool:
        """One that answers, whoever started it. Our connection keeps ours from ending when nobody else has one."""
        agent = self._orders.agent
        if not self._lives(self._agent):
            self._start_agent()
        for path in sockets(agent.runtime_dir, agent.spool_dir):
            try:
                self._client = Client.connect(path, timeout=_ANSWER_TIMEOUT_S)
            except AgentError as error:
                self._failure = error.message
            else:
                return True
        return False

    def _start_agent(self) -> None:
        options = self._orders.agent
        command = [sys.executable, "-m", "spotckpt.agent", "--private", f"--stop-grace={self._orders.inner_grace_s:g}"]
        command += [f"--runtime-dir={options.runtime_dir}", f"--spool-dir={options.spool_dir}"]
        command += [f"--poll-interval={options.poll_interval_s:g}", f"--log-format={options.log_format}"]
        if options.metadata_endpoint:
            command += [f"--metadata-endpoint={options.metadata_endpoint}"]
        # in a group of its own: what the terminal sends is for the command; and its output is not ours to keep open
        self._agent = os.posix_spawn(
            command[0],
            command,
            package_environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, 2, 1),
            ],
            setsigmask=(),
            setpgroup=0,
        )
        self._ended.pop(self._agent, None)

    def _tend_agent(self) -> None:
        """Another one when it has gone; the command goes on meanwhile."""
        client = self._client
        is_there = client is not None and not client.lost and (self._is_shared or self._lives(self._agent))
        if is_there or self._is_told or not self._next_try.passed:
            return
        self._next_try = Deadline.after(_AGENT_PAUSE_S)
        if client is not None:
            client.close()
            self._client = None
            self._say("the agent has gone; another one is started")
        self._is_shared = False
        self._find_agent()

    def _tell_agent(self) -> None:
        """Ours ends; before that it tells every trainer, also one that a shell hides from our signals."""
        if self._lives(self._agent) and not self._is_shared and not self._is_told:
            self._is_told = True
            os.kill(self._agent, signal.SIGTERM)

    def _status(self) -> Mapping[str, Any]:
        try:
            return {} if self._client is None else self._client.call("status", timeout=_ANSWER_TIMEOUT_S)
        except AgentError:
            return {}

    def _notice(self) -> bool:
        """Whether a notice is in force that this machine will go."""
        return any(notice["final"] for notice in self._status().get("notices", ()))

    def _is_draining(self) -> bool:
        """Whether something is left to commit of a trainer that has ended."""
        if self._client is None:
            return False
        runs = self._status().get("runs", ())
        return any(not run["trainer_pid"] or start_time(run["trainer_pid"]) is None for run in runs)

    # ---- waiting

    def _wait(self, is_over: Callable[[], bool], *, look_s: float = _LONG_LOOK_S) -> None:
        """Until then, or until the grace is over. The end of a child and signals are noticed at once."""
        while not is_over() and not self._deadline.passed:
            patience_s = look_s if self._client is not None else _AGENT_PAUSE_S
            self._turn(min(patience_s, self._deadline.seconds_left))
            self._tend_agent()

    def _turn(self, patience_s: float) -> None:
        found = signal.sigtimedwait(_WATCHED, patience_s)
        if found is not None and found.si_signo != signal.SIGCHLD:
            self._take(found)
        self._reap()

    def _take(self, found: signal.struct_siginfo) -> None:
        # what the terminal sends goes to its whole group, the command too
        is_of_terminal = found.si_code > 0
        if self._lives(self._command) and not is_of_terminal:
            os.kill(self._command, found.si_signo)
        if found.si_signo not in _ENDING:
            return
        is_last = found.si_signo == signal.SIGTERM or not self._lives(self._command)
        if is_last and not self._is_leaving:
            self._is_leaving = True
            self._deadline = Deadline.after(self._orders.grace_s)
            self._say(f"{signal.Signals(found.si_signo).name}: everything ends within {self._orders.grace_s:g} s")
            self._tell_agent()
        if self._stopped_by != signal.SIGTERM:
            self._stopped_by = found.si_signo

    def _lives(self, pid: int) -> bool:
        return pid > 0 and pid not in self._ended

    def _reap(self) -> None:
        """Takes the statuses of all that have ended: PID 1 inherits orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in (self._agent, self._command):
                self._ended[pid] = os.waitstatus_to_exitcode(status)
