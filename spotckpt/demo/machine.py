"""A spot instance of the demo: an agent, a trainer, metadata, and a disk that is empty at first and lost at the end."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from spotckpt.demo.bucket import URI, child_environment
from spotckpt.demo.process import Child, wait_until
from spotckpt.demo.screen import Screen
from spotckpt.demo.servers import MetadataServer

_AGENT_TIMEOUT_S = 30.0
_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO )?")  # the screen has its own


class Machine:
    """Number `number` of the demo's machines.

    Args:
        number: from 1.
        disk: its directory, which must not exist; it has the spool and the runtime directory.
        logs: where its processes' output is kept.
        port: of the network to the bucket.
        screen: what its processes say is shown there.
    """

    def __init__(self, number: int, *, disk: Path, logs: Path, port: int, screen: Screen) -> None:
        self.number = number
        self.metadata = MetadataServer(instance_id=f"i-demo{number}")
        self.agent = Child(f"agent {number}", log_path=logs / f"agent-{number}.log")
        self.trainer = Child(f"trainer {number}", log_path=logs / f"trainer-{number}.log")
        self._disk = disk
        self._screen = screen
        self._environment = child_environment(port, temporary=disk / "tmp") | {
            "SPOTCKPT_URI": URI,
            "SPOTCKPT_RUNTIME_DIR": str(disk / "run"),
            "SPOTCKPT_SPOOL": str(disk / "spool"),
        }

    def boot(self) -> None:
        """Starts metadata and agent; returns when the agent's socket is there."""
        (self._disk / "tmp").mkdir(parents=True)
        self.metadata.start()
        command = [sys.executable, "-m", "spotckpt", "agent", "--metadata-endpoint", self.metadata.endpoint]
        self._start(self.agent, [*command, "--poll-interval", "0.5"])
        socket = self._disk / "run" / "agent.sock"
        wait_until("the agent's socket", socket.exists, _AGENT_TIMEOUT_S, alive=[self.agent])

    def train(self, *, seed: int, pace_s: float, out: Path) -> None:
        """Starts the training script, the same command on every machine."""
        command = [sys.executable, "-m", "spotckpt.demo.spot", "--seed", str(seed), "--pace", str(pace_s)]
        self._start(self.trainer, [*command, "--out", str(out)])

    def vanish(self) -> None:
        """SIGKILLs trainer and agent by pid, ends the metadata and erases the disk; harmless when called twice."""
        self.trainer.kill()
        self.agent.kill()
        self.metadata.stop()
        shutil.rmtree(self._disk, ignore_errors=True)

    def _start(self, child: Child, command: list[str]) -> None:
        child.start(
            command,
            environment=self._environment,
            on_line=lambda line: self._screen.say(child.name, _TIME.sub("", line)),
        )
