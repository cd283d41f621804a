"""A machine whose PID 1 is a real systemd, in namespaces of this one; `boot.sh` puts it together."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import wait_until

TREE = Path(__file__).parents[2]
BOOT = Path(__file__).with_name("boot.sh")
NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--cgroup")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
UNITS = Path("/lib/systemd/system")
TARGETS = "basic sysinit multi-user network network-online shutdown umount final poweroff sockets timers paths slices"
"""Those of the distribution's units that are there; its services stay out."""


def reason_not_to() -> str:
    """Why no systemd can be booted here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed (apt-get install systemd)"
    if _cgroup2() is None:
        return "no cgroup2 hierarchy is mounted"
    tried = 'mount -t tmpfs tmpfs "$0" && cd "$0" && mkdir u w r && '
    tried += "mount -t overlay overlay -o lowerdir=/,upperdir=u,workdir=w r"
    with tempfile.TemporaryDirectory() as place:
        command = ["unshare", "--fork", *NAMESPACES, "sh", "-c", tried, place]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "" if found.returncode == 0 else f"namespaces or overlayfs are not allowed: {found.stderr.strip()}"


_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Of the machine: whoever runs the tests may have another."""


def _cgroup2() -> Path | None:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)


class Booted:
    """It runs from `__init__` on.

    Args:
        shared: a directory that appears as /shared inside; for what the machine's services write.
        install: shell commands that install the units, run in a checkout.
        files: path → text, written over what was installed.
        shm: how large /dev/shm is, as mount(8) has it.
    """

    def __init__(self, shared: Path, *, install: str, files: Mapping[str, str], shm: str) -> None:
        self.shared = shared
        shared.mkdir(parents=True, exist_ok=True)
        shared.chmod(0o777)
        (shared / "install").write_text(install)
        for path, text in {**files, **_distribution()}.items():
            place = shared / "root" / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        self._cgroup = Path(tempfile.mkdtemp(prefix="spotckpt-test-", dir=_cgroup2()))
        self.console = ""
        self._terminal, slave = pty.openpty()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        in_cgroup = ["sh", "-c", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(self._cgroup)]
        unshare = ["unshare", "--fork", "--kill-child", *NAMESPACES]
        boot = [str(BOOT), str(TREE), sys.prefix, sys.base_prefix, PYTHON, str(shared), os.ttyname(slave), shm]
        self._process = subprocess.Popen(
            [*in_cgroup, *unshare, *boot], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave
        )
        os.close(slave)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO once nobody has the other end
            while text := os.read(self._terminal, 65536):
                self.console += text.decode(errors="replace").replace("\r", "")

    @property
    def pid(self) -> int:
        """Of its PID 1, as seen from here."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def wait_running(self) -> None:
        def running() -> bool:
            assert self._process.poll() is None, self.console
            return self.systemctl("is-system-running", check=False) in ("running", "degraded", "starting")

        wait_until(running, what="systemd")

    def run(self, *command: str, check: bool = True) -> str:
        """What a command says that root runs there."""
        inside = ["nsenter", "-t", str(self.pid), "-a", "env", f"PATH={_PATH}", *command]
        found = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
        assert found.returncode == 0 or not check, f"{command}: {found.stderr}{self.console}"
        return found.stdout.strip()

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        return self.run("systemctl", "--no-pager", *arguments, check=check)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit)

    def power_off(self) -> None:
        """As the hypervisor's power button does."""
        os.kill(self.pid, signal.SIGRTMIN + 4)

    def wait_off(self, timeout_s: float) -> None:
        self._process.wait(timeout_s)

    def end(self) -> None:
        """Whatever state it is in."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        os.close(self._terminal)
        shutil.rmtree(self.shared / "root")
        wait_until(self._forget_cgroup, what="its cgroup empty")

    def _forget_cgroup(self) -> bool:
        for path in sorted(self._cgroup.glob("**/"), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        return not self._cgroup.exists()


def _distribution() -> dict[str, str]:
    names = [*(f"{name}.target" for name in TARGETS.split()), "systemd-poweroff.service"]
    return {f"/etc/systemd/boot/{name}": (UNITS / name).read_text() for name in names}


@contextmanager
def booted(shared: Path, *, install: str, files: Mapping[str, str], shm: str = "64m") -> Iterator[Booted]:
    machine = Booted(shared, install=install, files=files, shm=shm)
    try:
        machine.wait_running()
        yield machine
    except BaseException:
        print(machine.console, *(f"{log}:\n{log.read_text()}" for log in shared.glob("*.log")), sep="\n")
        raise
    finally:
        machine.end()


def readme_block(title: str) -> str:
    """The first shell commands under that heading of deploy/README.md."""
    text = (TREE / "deploy/README.md").read_text()
    found = re.search(rf"^#+ {re.escape(title)}\n.*?^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found, f"deploy/README.md has no commands under {title!r}"
    return found[1]
