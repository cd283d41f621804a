"""`spotckpt exec` around real trainings: in a container as one machine can make it, and after failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checker import check
from tests.support.servers import S3Env, wait_until
from tests.training.forked import SCRIPT
from tests.training.machine import Bucket, Machine

EXEC = (sys.executable, "-m", "spotckpt", "exec")
GRACE_S = 10.0
STEPS = 10


class Container:
    """`spotckpt exec` as PID 1 of a PID namespace, with 64 MB of /dev/shm and a /var/tmp of its own."""

    def __init__(self, here: Machine, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.disk = folder / "disk"
        self.disk.mkdir(mode=0o1777)
        self.trace, self._log = folder / "trace", folder / "log"
        isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-ec"]
        mounts = f'mount -t tmpfs -o size=64m tmpfs /dev/shm; mount --bind {self.disk} /var/tmp; exec "$@"'
        if subprocess.run([*isolated, mounts, "sh", "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("this user may not make PID and mount namespaces")
        environment = {name: value for name, value in here.environment.items() if name != "SPOTCKPT_SPOOL"}
        command = [*isolated, mounts, "sh", *EXEC, "--", sys.executable, str(SCRIPT), f"--trace={self.trace}", *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, line: str) -> None:
        def there() -> bool:
            assert self._process.poll() is None, self.said
            return self.trace.exists() and line in self.trace.read_text().splitlines()

        wait_until(there, timeout_s=150, what=f"{line!r} of {self.said}")

    def stop(self, grace_s: float) -> int:
        """As a container engine does: SIGTERM to PID 1, and SIGKILL of everything after the grace."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        [pid_1] = map(int, children.read_text().split())
        os.kill(pid_1, signal.SIGTERM)
        try:
            return self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.kill(pid_1, signal.SIGKILL)
            return self._process.wait(60)


# two of three slots of 24 MB fit into /dev/shm, none of 72 MB
@pytest.mark.fault(25)
@pytest.mark.parametrize(("frozen", "on_disk"), [(6_000_000, 1), (18_000_000, 3)])
def test_a_container_is_stopped_within_its_grace_and_the_next_goes_on(
    here: Machine, tmp_path: Path, seaweed_env: S3Env, frozen: int, on_disk: int
) -> None:
    here.environment.update(seaweed_env.environment)
    bucket = Bucket(seaweed_env.uri)
    options = [f"--frozen={frozen}", "--every=1h", "--delay=0.1", "--epochs=100"]
    first = Container(here, tmp_path / "first", f"--uri={bucket.uri}", *options)
    first.wait_for("step 3")
    wait_until(lambda: len(list(first.disk.rglob("*.data"))) == on_disk, what="the slots that are staged on disk")
    status = first.stop(GRACE_S)
    assert status == 75, first.said
    assert "PID 1" not in first.said
    assert [manifest["reason"] for manifest in bucket.manifests()] == ["notice"]
    assert bucket.released(1)
    newest = bucket.manifests()[-1]["snapshot"]
    assert str(check(bucket.uri, [newest])) == newest
    second = here.start(bucket.uri, *options)
    second.wait_for(f"begin {bucket.manifests()[-1]['step']} {newest}")
    assert bucket.attempts() == [1, 2]


@pytest.mark.fault(13)
def test_after_a_crash_it_is_started_again_and_ends_as_if_nothing_had_been(here: Machine, tmp_path: Path) -> None:
    bucket = Bucket(f"file://{tmp_path}/run")
    plain = here.train(f"file://{tmp_path}/plain").end
    trace = tmp_path / "trace"
    train = f"{sys.executable} {SCRIPT} --uri={bucket.uri} --trace={trace}"
    once = f"[ -e {tmp_path}/begun ] && exec {train}; touch {tmp_path}/begun; exec {train} --at=6 --act=segfault"
    command = [*EXEC, "--restarts=1", "--", "sh", "-c", once]
    done = subprocess.run(command, env=here.environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert "status 139" in done.stderr
    lines = trace.read_text().splitlines()
    assert [int(line.split()[1]) for line in lines if line.startswith("step ")] == [*range(7), *range(6, STEPS)]
    assert lines[-1] == plain
    assert bucket.attempts() == [1, 2]
