"""A spot instance of a drill: an agent, a trainer, metadata, and a disk that is empty at first and lost at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from spotckpt.agent.client import Client
from spotckpt.agent.paths import SOCKET_NAME
from spotckpt.drill.metadata import MetadataServer
from spotckpt.drill.process import Child, wait_until
from spotckpt.errors import AgentError
from spotckpt.training.witness import PROBE_VARIABLE, go_path, held_path

_AGENT_TIMEOUT_S = 30.0
_ANSWER_S = 5.0

Say = Callable[[str, str], None]
"""Takes a speaker and a line."""


class Machine:
    """Number `number` of a drill's machines.

    Args:
        number: from 1.
        disk: its directory, which must not exist; it has the spool and the runtime directory.
        logs: where its processes' output is kept.
        environment: of its processes, with access to the place of the runs.
        heard: told what they say.
        upload_limit: bytes per second that its agent uploads at most; 0 is as many as go.

    Attributes:
        committed: a snapshot that was waited for.
    """

    def __init__(
        self,
        number: int,
        *,
        disk: Path,
        logs: Path,
        environment: Mapping[str, str],
        heard: Say,
        upload_limit: float = 0.0,
    ) -> None:
        self.number = number
        self.metadata = MetadataServer(instance_id=f"i-drill{number}")
        self.agent = Child(f"agent {number}", log_path=logs / f"agent-{number}.log")
        self.trainer = Child(f"trainer {number}", log_path=logs / f"trainer-{number}.log")
        self.committed = ""
        self._disk = disk
        self._logs = logs
        self._heard = heard
        self._upload_limit = upload_limit
        kept = {name: value for name, value in environment.items() if not name.startswith("SPOTCKPT_")}
        self._environment = kept | {
            "PYTHONUNBUFFERED": "1",  # what was said before a kill was said
            "SPOTCKPT_AGENT": "service",  # who is killed is started again here, as systemd would
            "SPOTCKPT_RUNTIME_DIR": str(disk / "run"),
            "SPOTCKPT_SPOOL": str(disk / "spool"),
        }

    def boot(self) -> None:
        """Starts metadata and agent; returns when the agent's socket is there."""
        self._disk.mkdir(parents=True)
        self.metadata.start()
        self.start_agent()

    def start_agent(self) -> None:
        """Starts an agent, also after the one before was killed."""
        command = [sys.executable, "-m", "spotckpt", "agent", "--metadata-endpoint", self.metadata.endpoint]
        command += ["--log-format", "json"]
        if self._upload_limit:
            command += ["--upload-limit", f"{self._upload_limit:.0f}B/s"]
        self.agent = Child(self.agent.name, log_path=self.agent.log_path)
        self._start(self.agent, [*command, "--poll-interval", "0.2"], {})
        wait_until("the agent's answer", self.standing, _AGENT_TIMEOUT_S, alive=[self.agent])

    def train(self, command: Sequence[str], *, uri: str, folder: Path | None, life: str) -> None:
        """Starts the training.

        Args:
            command: the user's; `{uri}` in it becomes the address.
            uri: of the run.
            folder: where its probe writes; None: without one.
            life: which start it is, for the name of its log.
        """
        self.trainer = Child(f"trainer {self.number}", log_path=self._logs / f"trainer-{life}.log")
        extra = {"SPOTCKPT_URI": uri} | ({} if folder is None else {PROBE_VARIABLE: str(folder)})
        self._start(self.trainer, [part.replace("{uri}", uri) for part in command], extra)

    def standing(self) -> dict[str, Any] | None:
        """What the agent says of itself and its runs; None if it does not answer."""
        with suppress(AgentError), Client.connect(self._disk / "run" / SOCKET_NAME, timeout=_ANSWER_S) as client:
            return dict(client.call("status", timeout=_ANSWER_S))
        return None

    def run(self) -> dict[str, Any]:
        """What the agent says of the run; empty when it has none open."""
        runs = (self.standing() or {"runs": []})["runs"]
        return dict(runs[-1]) if runs else {}

    @property
    def trainer_pid(self) -> int:
        """Of the process that trains, which a shell may hide; the command's own before it has opened the run."""
        return int(self.run().get("trainer_pid") or self.trainer.pid)

    def wait_held(self, folder: Path, step: int, patience_s: float) -> bool:
        """Whether the trainer waits at that step, once it does; False if it ended before."""

        def there() -> bool:
            return held_path(folder, step).exists() or self.trainer.poll() is not None

        wait_until(f"step {step} of the training", there, patience_s, alive=[self.agent])
        return held_path(folder, step).exists()

    def let_go(self, folder: Path, step: int) -> None:
        """The trainer goes on from where it waits."""
        go_path(folder, step).touch()

    def signal_trainer(self, number: signal.Signals) -> None:
        """Sends a signal to the process that trains."""
        with suppress(ProcessLookupError):
            os.kill(self.trainer_pid, number)

    def vanish(self) -> None:
        """SIGKILLs trainer and agent by pid, ends the metadata and erases the disk; harmless when called twice."""
        if self.trainer.poll() is None and self.trainer.pid:
            self.signal_trainer(signal.SIGKILL)
        self.trainer.kill()
        self.agent.kill()
        self.metadata.stop()
        shutil.rmtree(self._disk, ignore_errors=True)

    def _start(self, child: Child, command: Sequence[str], extra: Mapping[str, str]) -> None:
        child.start(
            command,
            environment={**self._environment, **extra},
            on_line=lambda line: self._heard(child.name, _message(line)),
        )


def _message(line: str) -> str:
    """What a line of the agent's log says, without its time: the screen has its own. Other lines as they are."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, TypeError, KeyError):
        return line
