"""The world of the pages: a bucket of that name, a run in it that has ended, an agent, a directory with train.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.command import Done, in_process
from tests.docs.commands import ROOT, Command, of_help
from tests.support.forkserver import PROCESSES
from tests.support.servers import MotoServer, wait_until
from tests.training.forked import run_script

TIMEOUT_S = 240
OWN_PROCESS = ("agent", "exec", "drill", "demo")


@dataclass
class World:
    """Where commands run."""

    home: Path

    def run(self, command: Command, home: Path | None = None) -> Done:
        """Runs it: a plain `spotckpt` in this process, our own training in a fork that has torch, else in a shell."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(home or self.home)
            if is_plain(command):
                return in_process(*command.words[1:])
            if command.words[:2] == ["python", "train.py"] and home is None:
                return self.forked(command.words[1:])
            return self.shell(command.text)

    def forked(self, arguments: list[str]) -> Done:
        said = self.home / "said"
        said.write_text("")
        process = PROCESSES.Process(
            target=run_script, args=([str(self.home / arguments[0]), *arguments[1:]], dict(os.environ), str(said))
        )
        process.start()
        process.join(TIMEOUT_S)
        assert process.exitcode is not None, said.read_text()
        return Done(process.exitcode, "", said.read_text())

    def shell(self, text: str) -> Done:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)


def is_plain(command: Command) -> bool:
    first, verb, *_ = [*command.words, "", ""]
    return first == "spotckpt" and verb not in OWN_PROCESS and not set("|<>;&$`") & set(command.text)


@pytest.fixture(scope="module")
def world(moto_server: MotoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all pages."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(Path(__file__).with_name("train.py"), home)
    server = moto_server.client
    if "bucket" not in [one["Name"] for one in server.list_buckets()["Buckets"]]:
        server.create_bucket(Bucket="bucket")
    with pytest.MonkeyPatch.context() as patch, (home / "agent.log").open("wb") as log:
        for name, value in moto_server.environment().items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("SPOTCKPT_RUNTIME_DIR", str(home / "rt"))
        patch.setenv("SPOTCKPT_SPOOL", str(home / "spool"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        [example] = of_help("agent")
        agent = subprocess.Popen(example.words, stdout=log, stderr=log)
        try:
            wait_until(lambda: in_process("status").status == 0, timeout_s=60, what="the agent's answer")
            made = World(home)
            first = made.run(Command("python train.py --resume s3://bucket/run"))
            assert first.status == 0, first.err
            yield made
        finally:
            agent.terminate()
            assert agent.wait(60) == 0, (home / "agent.log").read_text()
