"""The trainer's way to an agent: the one that runs, or a private one started now."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import spotckpt
from spotckpt.agent import locks, paths
from spotckpt.agent.client import Client, OnEvent
from spotckpt.agent.options import ALREADY_RUNNING
from spotckpt.config import Settings
from spotckpt.deadline import Deadline
from spotckpt.errors import AgentError, SettingError

_LOG_LIMIT_BYTES = 10 << 20
_PAUSE_S = 0.1


def ensure_agent(
    settings: Settings | None = None,
    *,
    on_event: OnEvent | None = None,
    timeout: float = 30.0,
    check: Callable[[], None] = lambda: None,
) -> Client:
    """Connects to this user's agent; if none answers, starts a private one, or with SPOTCKPT_AGENT=service waits.

    It goes on when this process is killed, finishes what is sealed, and ends by itself when idle. Any number of
    processes may do this at once: one agent wins the lock and all get a connection to it.

    Args:
        settings: `metadata_endpoint` is passed to an agent that is started here.
        on_event: as in `Client.connect`.
        timeout: seconds for everything.
        check: called again and again meanwhile; what it raises ends the waiting.

    Raises:
        AgentError: no agent answers and none could be started; with the end of its log.
    """
    runtime, spool = paths.runtime_dir().absolute(), paths.spool_dir().absolute()
    paths.make_private_dir(runtime)
    deadline = Deadline.after(timeout)
    while True:
        failure: AgentError | None = None
        for socket in sockets(runtime, spool):
            try:
                return Client.connect(socket, on_event=on_event, timeout=min(10.0, max(0.1, deadline.seconds_left)))
            except AgentError as error:
                failure = failure or error
        if deadline.passed:
            raise AgentError(f"no agent within {timeout:g} s: {failure}", hint=_where_to_look(runtime))
        if _is_service():
            time.sleep(_PAUSE_S)
        else:
            _start(runtime, spool, (settings or Settings()).metadata_endpoint, deadline, check)


def _is_service() -> bool:
    """Whether a supervisor keeps the agent: one started here meanwhile would hold the spool against the service's."""
    chosen = os.environ.get("SPOTCKPT_AGENT", "")
    if chosen not in ("", "service"):
        raise SettingError(f"SPOTCKPT_AGENT={chosen!r} is not known", hint="it is 'service', or not set")
    return bool(chosen)


def _where_to_look(runtime: Path) -> str:
    log = runtime / paths.LOG_NAME
    return "SPOTCKPT_AGENT=service: systemctl status spotckpt-agent" if _is_service() else f"see {log}"


def sockets(runtime: Path, spool: Path) -> list[Path]:
    """Our runtime directory's, and that of whoever holds our spool under another runtime directory."""
    own = paths.socket_path(runtime)
    holder = locks.read_holder(spool)
    return [own] if holder is None or holder.socket == own else [own, holder.socket]


def _start(runtime: Path, spool: Path, metadata_endpoint: str, deadline: Deadline, check: Callable[[], None]) -> None:
    command = [sys.executable, "-m", "spotckpt.agent", "--private", "--detach"]
    command += ["--runtime-dir", str(runtime), "--spool-dir", str(spool)]
    if metadata_endpoint:
        command += ["--metadata-endpoint", metadata_endpoint]
    try:
        started = _spawn(command, runtime)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise AgentError(f"no agent can be started: {error.strerror}{where}", hint=_log_hint(runtime)) from error
    status = _wait(started, Deadline.after(max(1.0, deadline.seconds_left)), check)
    if status is None:
        raise AgentError("a private agent did not start in time", hint=_log_hint(runtime))
    if status == ALREADY_RUNNING:
        time.sleep(0.05)  # the winner is about to listen, or about to end
    elif status != 0:
        raise AgentError(f"a private agent could not be started (status {status})", hint=_log_hint(runtime))


def _spawn(command: list[str], runtime: Path) -> subprocess.Popen[bytes]:
    log = _open_log(runtime)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=package_environment(),
        )
    finally:
        os.close(log)


def _wait(started: subprocess.Popen[bytes], deadline: Deadline, check: Callable[[], None]) -> int | None:
    """Its exit status once it has gone to the background, or failed; None if that does not come in time."""
    try:
        while not deadline.passed:
            check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return started.wait(min(_PAUSE_S, deadline.seconds_left))
        return None
    finally:
        if started.returncode is None:
            started.kill()  # it has no lock yet, or leaves it to its child
            started.wait()


def package_environment() -> dict[str, str]:
    """Ours; and the agent finds this very package, but no modules of the directory that we were started in."""
    environment = dict(os.environ, PYTHONSAFEPATH="1")
    home = Path(spotckpt.__file__).resolve().parents[1]
    if home.name not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(home))))
    return environment


def _open_log(runtime: Path) -> int:
    path = runtime / paths.LOG_NAME
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _log_hint(runtime: Path) -> str:
    path = runtime / paths.LOG_NAME
    try:
        last = path.read_text(errors="replace").splitlines()[-1:]
    except OSError:
        last = []
    return f"see {path}" + (f", which ends: {last[0]}" if last else "")
