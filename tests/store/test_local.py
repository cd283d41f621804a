"""What is particular to directories."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spotckpt.errors import BucketMissing, Denied, NotFound, StoreError
from spotckpt.store.base import TEMPORARY
from spotckpt.store.local import LocalStore
from spotckpt.store.open import open_store
from spotckpt.store.translate import from_os_error
from tests.support.servers import wait_until


def test_a_killed_writer_leaves_nothing_to_be_seen(tmp_path):
    code = (
        "import sys; from spotckpt.store.local import LocalStore\n"
        "def stop(n):\n    print('half', flush=True); sys.stdin.read()\n"
        "LocalStore(sys.argv[1]).put('packs/p', [bytes(20 * 2**20)], progress=stop)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with writer:
        assert writer.stdout.readline() == b"half\n"
        writer.send_signal(signal.SIGKILL)
    store = LocalStore(str(tmp_path))
    assert list((tmp_path / "packs").glob(f"{TEMPORARY}*"))
    assert store.list("") == []
    assert not store.exists("packs/p")
    store.create("packs/p", b"whole")
    assert [stat.key for stat in store.list("")] == ["packs/p"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    store = LocalStore(str(tmp_path))
    store.put("beat", [b"0" * 100_000])
    code = (
        "import itertools, sys; from spotckpt.store.local import LocalStore\n"
        "store = LocalStore(sys.argv[1])\n"
        "for n in itertools.count(): store.put('beat', [str(n % 10).encode() * 100_000])\n"
    )
    seen: set[bytes] = set()

    def read() -> bool:
        for _ in range(100):
            data = store.read("beat", limit_bytes=100_000)
            assert len(data) == 100_000
            assert len(set(data)) == 1
            seen.add(data[:1])
        return len(seen) == 10

    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as writer:
        try:
            wait_until(read, what="ten versions")
            assert writer.poll() is None
        finally:
            writer.kill()
    read()


def test_a_directory_that_another_removed_meanwhile_is_no_error(tmp_path):
    """Two that delete at once: whoever takes the last file of a directory removes it."""
    store = LocalStore(str(tmp_path))
    store.put("packs/one/pack", [b"x"])

    def keys() -> Iterator[str]:
        yield "packs/one/pack"
        (tmp_path / "packs/one").rmdir()

    store.delete(keys())
    assert store.list("") == []


@pytest.mark.parametrize("root", ["/proc/spotckpt/run", "/dev/null/run"])
def test_a_root_that_cannot_be_made_is_named(root):
    store = open_store(f"file://{root}")
    assert store.list("") == []
    with pytest.raises((BucketMissing, Denied), match=rf"{root}/run\.json"):
        store.create("run.json", b"")


@pytest.mark.fault(71)
def test_links_do_not_lead_out_of_the_root(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = tmp_path / "run"
    root.mkdir()
    (root / "attempts").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    store = LocalStore(str(root))
    for verb in (
        lambda: store.read("attempts/secret", limit_bytes=10),
        lambda: store.create("attempts/new", b""),
        lambda: store.put("attempts/secret", [b"overwritten"]),
        lambda: store.delete(["attempts/secret"]),
    ):
        with pytest.raises(Denied, match="symbolic link leads out"):
            verb()
    with pytest.raises(NotFound):
        store.read("file", limit_bytes=10)
    assert not store.exists("file")
    assert store.list("") == store.list("attempts/") == []
    store.put("file", [b"own"])
    assert (outside / "secret").read_text() == "secret"


def test_a_root_may_itself_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    store = open_store(f"file://{tmp_path}/link/run")
    store.create("a/b", b"x")
    assert [stat.key for stat in store.list("a/")] == ["a/b"]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_files_of_the_store_are_closed(tmp_path):
    store = LocalStore(str(tmp_path))
    before = open_files()
    for number in range(5):
        store.put(f"k{number}", [b"x"])
        store.read_into(f"k{number}", [(0, [memoryview(bytearray(1))])])
        with pytest.raises(NotFound):
            store.read("none", limit_bytes=1)
    wait_until(lambda: open_files() <= before)


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [(28, StoreError, "free space"), (13, Denied, "allow"), (30, Denied, "another place"), (2, NotFound, "")],
)
def test_the_systems_errors_are_told_with_path_and_remedy(number, kind, hint):
    error = from_os_error(OSError(number, os.strerror(number)), operation="put", key="/data/run/pack")
    assert type(error) is kind
    assert "/data/run/pack" in str(error)
    assert hint in str(error)
