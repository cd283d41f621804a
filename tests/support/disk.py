"""A disk that fails or loses its power: what the calls of this process below one directory would have left on it.

Only what was synced lasts: the bytes of a file with its fsync, a name (made, replaced or removed) with that of its
directory. A sync that fails throws away what it should have written, and a later one that finds nothing new succeeds
all the same, as it does on Linux. What was not synced may last or not; `Loss` says which of it does.
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_store import Crash

Entries = dict[str, "int | str"]
"""Names in a directory: what file it is (each ever made has a number), or `DIRECTORY`."""

DIRECTORY = "directory"


class Loss(enum.Enum):
    """What of the unsynced is lost."""

    ALL = "all of it"
    BYTES = "the bytes, not the names"
    NAMES_OF_PACKS = "bytes, and the names in packs/"
    NAMES_BUT_PACKS = "bytes, and the names elsewhere"

    def keeps_names(self, directory: str) -> bool:
        in_packs = directory.startswith("packs")
        return self is Loss.BYTES or (self is not Loss.ALL and in_packs == (self is Loss.NAMES_BUT_PACKS))


class Disk:
    """Stands between this process and the directory while `mounted`.

    Args:
        root: what is below it is watched. It must be there.
        cut_before: the number of the call, of those that change something, before which the power goes; 0 is never.
        fails: the kind of call that fails once with EIO: `write`, `fsync` or `fsync of a directory`.
        at: which of those.

    Attributes:
        calls: how many changed something.
        seen: how many were of the kind that fails.
        failed: the path whose call failed.
    """

    def __init__(self, root: Path, *, cut_before: int = 0, fails: str = "", at: int = 0) -> None:
        self.root = root
        self.cut_before = cut_before
        self.fails = fails
        self.at = at
        self.calls = 0
        self.failed = ""
        self.seen = 0
        self._cut = False
        self._numbers = itertools.count(1)
        self._number_of: dict[int, int] = {}
        self._bytes: dict[int, bytes] = {}
        self._poisoned: set[int] = set()
        self._names: dict[str, Entries] = {}
        self._lost: dict[str, dict[str, int | str | None]] = {}

    @contextmanager
    def mounted(self) -> Iterator[Disk]:
        """From here on calls of this process are watched."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("write", "link", "replace", "unlink", "mkdir", "rmdir"):
                patch.setattr(os, name, self._counted(name, getattr(os, name)))
            patch.setattr(os, "open", self._open(os.open))
            patch.setattr(os, "fsync", self._fsync(os.fsync))
            yield self

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self._step()
            if name == "write" and self._is_due("write", args[0]):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args, **options)

        return counted

    def _open(self, call: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self._step()
            descriptor = call(path, flags, *args, **options)
            if flags & os.O_CREAT:
                self._number_of[os.fstat(descriptor).st_ino] = next(self._numbers)
            return descriptor

        return opened

    def _fsync(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def synced(descriptor: int) -> None:
            self._step()
            call(descriptor)
            is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            fails = self._is_due("fsync of a directory" if is_directory else "fsync", descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if is_directory:
                self._sync_names(path, fails=fails)
            else:
                self._sync_bytes(path, descriptor, fails=fails)
            if fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        return synced

    def _step(self) -> None:
        self.calls += 1
        self._cut = self._cut or self.calls == self.cut_before
        if self._cut:
            raise Crash(f"the power went before call {self.cut_before}")

    def _is_due(self, kind: str, descriptor: int) -> bool:
        if kind != self.fails:
            return False
        self.seen += 1
        if self.seen == self.at:
            self.failed = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        return self.seen == self.at

    def _sync_bytes(self, path: Path, descriptor: int, *, fails: bool) -> None:
        number = self._number_of.get(os.fstat(descriptor).st_ino, 0)
        if fails:
            self._poisoned.add(number)
        elif number not in self._poisoned:
            self._bytes[number] = path.read_bytes()

    def _sync_names(self, path: Path, *, fails: bool) -> None:
        key, now = str(path), self._entries(path)
        before, lost = self._names.get(key, {}), self._lost.setdefault(key, {})
        news = {name: now.get(name) for name in before.keys() | now.keys() if now.get(name) != before.get(name)}
        if fails:
            lost.update(news)
            return
        kept = dict(before)
        for name, what in news.items():
            if name in lost and lost[name] == what:
                continue
            kept.pop(name, None)
            if what is not None:
                kept[name] = what
        self._names[key] = kept

    def _entries(self, path: Path) -> Entries:
        found: Entries = {}
        for entry in os.scandir(path):
            found[entry.name] = DIRECTORY if entry.is_dir() else self._number_of.get(entry.inode(), 0)
        return found

    def after_power_loss(self, target: Path, loss: Loss) -> Path:
        """Writes into `target` what a machine that boots again would find."""
        self._restore(self.root, target, loss)
        return target

    def _restore(self, path: Path, target: Path, loss: Loss) -> None:
        target.mkdir(parents=True)
        names = self._names.get(str(path), {})
        if loss.keeps_names(str(path.relative_to(self.root))) and path.exists():
            names = self._entries(path)
        for name, what in names.items():
            if what == DIRECTORY:
                self._restore(path / name, target / name, loss)
            else:
                assert isinstance(what, int)
                (target / name).write_bytes(self._bytes.get(what, b""))
