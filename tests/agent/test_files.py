"""The spool's small files on a disk that fails: thrown away, and never half there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spotckpt.agent.files import write_durably

WRITE_TWICE = """
import sys; from pathlib import Path; from spotckpt.agent.files import write_durably
path = Path(sys.argv[1])
for data in (b"second", b"third"):
    try:
        write_durably(path, data)
    except OSError as error:
        print(error.errno, end=" ")
    print(path.read_text(), sorted(found.name for found in path.parent.iterdir()))
"""


@pytest.mark.fault(16)
@pytest.mark.fault(17)
@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace to make the kernel answer EIO")
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_io_error_leaves_the_old_file_and_the_next_try_writes_all_of_it_again(tmp_path: Path, call: str) -> None:
    spool, log = tmp_path / "spool", tmp_path / "log"
    spool.mkdir()
    path = spool / "seal.json"
    write_durably(path, b"first")
    done = subprocess.run(
        [
            *("strace", "-f", "-y", "-qq", "-o", str(log), "-P", str(spool / ".seal.json.new")),
            *("-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when=1"),
            *(sys.executable, "-c", WRITE_TWICE, str(path)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if not log.exists() or "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr[-200:]}")
    assert done.stdout.splitlines() == ["5 first ['seal.json']", "third ['seal.json']"]
    calls = log.read_text().splitlines()
    assert ["(INJECTED)" in line for line in calls][:2] == [True, False]
