"""A directory as a store, as durable as its file system.

A deletion is synced as every write is (see `durable`), so that of two the later is never the only one that lasts.
"""

from __future__ import annotations

import builtins
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import Denied, LimitExceeded, NotFound, Replaced, StoreError, Unavailable
from spotckpt.store.base import (
    MIB,
    TEMPORARY,
    Arrived,
    Buffer,
    Progress,
    Reading,
    Span,
    Stat,
    Store,
    Unfinished,
    blocks,
    check_key,
    check_prefix,
    pieces,
    require_time,
    size_of,
    size_of_spans,
    without_first,
)
from spotckpt.store.durable import final_name, link, sync_directory, sync_name, written
from spotckpt.store.limiter import Pace
from spotckpt.store.os_errors import translated

_PIECE_BYTES = 8 * MIB
_BUFFERS_AT_ONCE = 1000
"""Fewer than the system's limit for one call (IOV_MAX, 1024)."""


class LocalStore(Store):
    """Objects are the regular files below `root`, which is made at the first write."""

    def __init__(
        self,
        root: str,
        *,
        call_timeout_s: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
        limiter: Pace | None = None,
    ) -> None:
        self.root = Path(root).absolute()
        self.uri = f"file://{self.root}"
        self.call_timeout_s = call_timeout_s
        self.clock = clock
        self._limiter = limiter

    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """See `Store.create`."""
        deadline = self.until(deadline)
        path = self._path("create", key, deadline)
        with written("create", path, _blocks("create", path, [data], deadline)) as temporary:
            link(temporary, path)
            sync_name("create", path)

    def put(
        self,
        key: str,
        data: Sequence[Buffer],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        reading: Reading | None = None,
    ) -> Stat:
        """See `Store.put`."""
        deadline = self.until(deadline, size_bytes=size_of(data))
        path = self._path("put", key, deadline)
        sent = _blocks("put", path, data, deadline, progress=progress, reading=reading, pace=self._limiter)
        with written("put", path, sent) as temporary:
            with translated("put", path):
                temporary.replace(path)
            sync_name("put", path)
        found = self.stat(key)
        if found.size_bytes != size_of(data):
            raise StoreError("put", str(path), f"{size_of(data)} bytes were written, {found.size_bytes} are there")
        return found

    def read(self, key: str, *, limit_bytes: int, deadline: Deadline | None = None) -> bytes:
        """See `Store.read`."""
        with self._opened("read", key, self.until(deadline)) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes > limit_bytes:
                raise LimitExceeded(f"{self.uri}/{key} has {size_bytes} bytes, at most {limit_bytes} are expected")
            return self._read_at(descriptor, key, 0, size_bytes)

    def read_into(
        self,
        key: str,
        spans: Sequence[Span],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        arrived: Arrived | None = None,
        etag: str | None = None,
        width: int | None = None,
    ) -> None:
        """See `Store.read_into`. An open file stays the version it was, whatever happens to its name."""
        deadline = self.until(deadline, size_bytes=size_of_spans(spans))
        with self._opened("read_into", key, deadline) as descriptor:
            if etag is not None and _stat(key, os.fstat(descriptor)).etag != etag:
                raise Replaced("read_into", f"{self.uri}/{key}", "the object was replaced")
            for index, span in enumerate(spans):
                self._fill(descriptor, key, span, deadline, progress)
                if arrived is not None:
                    arrived(index)

    def list(self, prefix: str, *, deadline: Deadline | None = None) -> list[Stat]:
        """See `Store.list`."""
        check_prefix(prefix)
        deadline = self.until(deadline)
        require_time("list", f"{self.uri}/{prefix}", deadline)
        start = self.root / prefix.rpartition("/")[0]
        if self._is_outside(start):
            return []
        with translated("list", start):
            found = []
            for entry in _files(start):
                key = str(Path(entry.path).relative_to(self.root))
                if key.startswith(prefix):
                    with suppress(FileNotFoundError):
                        found.append(_stat(key, entry.stat(follow_symlinks=False)))
            return found

    def stat(self, key: str, *, deadline: Deadline | None = None) -> Stat:
        """See `Store.stat`."""
        path = self._path("stat", key, self.until(deadline))
        with translated("stat", path):
            result = path.stat(follow_symlinks=False)
        if not S_ISREG(result.st_mode):
            raise NotFound("stat", str(path), "not a regular file")
        return _stat(key, result)

    def delete(self, keys: Iterable[str], *, deadline: Deadline | None = None) -> None:
        """See `Store.delete`. Directories that it leaves empty go too."""
        deadline = self.until(deadline)
        touched: dict[Path, None] = {}
        for key in keys:
            path = self._path("delete", key, deadline)
            with translated("delete", path), suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
                touched[path.parent] = None
        for directory in touched:
            with translated("delete", directory):
                _sync_removed(directory)
            if directory != self.root:
                with suppress(OSError):  # it is not empty
                    directory.rmdir()

    def settle(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """See `Store.settle`. Written anew: the name may be one whose sync failed."""
        self.put(key, [data], deadline=deadline)

    def time(self, *, deadline: Deadline | None = None) -> float:
        """See `Store.time`: the file system's clock, which on a network is another machine's."""
        require_time("time", self.uri, self.until(deadline))
        try:
            with tempfile.TemporaryFile(dir=self.root) as probe:
                return os.fstat(probe.fileno()).st_mtime
        except OSError:  # who may not write there may look all the same
            return 0.0

    def unfinished(self, *, deadline: Deadline | None = None) -> builtins.list[Unfinished]:
        """See `Store.unfinished`: temporary files whose names are those that this class gives."""
        require_time("unfinished", self.uri, self.until(deadline))
        found = []
        with translated("unfinished", self.root):
            for entry in _entries(self.root):
                name = final_name(entry.name)
                if name is not None and entry.is_file(follow_symlinks=False):
                    key = str(Path(entry.path).with_name(name).relative_to(self.root))
                    with suppress(FileNotFoundError):
                        found.append(Unfinished(key, entry.name, entry.stat(follow_symlinks=False).st_mtime))
        return found

    def discard(self, write: Unfinished, *, deadline: Deadline | None = None) -> None:
        """See `Store.discard`."""
        assert final_name(write.name), f"{write.name} is no temporary file of ours"
        path = self._path("discard", write.key, self.until(deadline)).with_name(write.name)
        with translated("discard", path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        with suppress(OSError):  # it is not empty
            path.parent.rmdir()

    def _path(self, operation: str, key: str, deadline: Deadline) -> Path:
        path = self.root / check_key(key)
        require_time(operation, str(path), deadline)
        if self._is_outside(path.parent):
            raise Denied(
                operation, str(path), "a symbolic link leads out of the run's directory", hint="remove the link"
            )
        return path

    def _is_outside(self, directory: Path) -> bool:
        """Whether a link leads out of the root. Only where there are links is it asked where they lead."""
        place = directory
        while place != self.root:
            if place.is_symlink():
                return not directory.resolve().is_relative_to(self.root.resolve())
            place = place.parent
        return False

    @contextmanager
    def _opened(self, operation: str, key: str, deadline: Deadline) -> Iterator[int]:
        path = self._path(operation, key, deadline)
        with translated(operation, path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not S_ISREG(os.fstat(descriptor).st_mode):
                raise NotFound(operation, str(path), "not a regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int, key: str, span: Span, deadline: Deadline, progress: Progress | None) -> None:
        offset, buffers = span
        for piece in pieces(buffers, _PIECE_BYTES):
            require_time("read_into", f"{self.uri}/{key}", deadline)
            rest = piece
            while rest:
                with translated("read_into", self.root / key):
                    count = os.preadv(descriptor, rest[:_BUFFERS_AT_ONCE], offset)
                if not count:
                    raise Unavailable("read_into", f"{self.uri}/{key}", f"it ends {size_of(rest)} bytes too early")
                offset += count
                rest = without_first(rest, count)
            if progress is not None:
                progress(size_of(piece))

    def _read_at(self, descriptor: int, key: str, offset: int, length: int) -> bytes:
        found: list[bytes] = []
        while length and (chunk := self._pread(descriptor, key, offset, length)):
            found.append(chunk)
            offset += len(chunk)
            length -= len(chunk)
        if length:
            raise Unavailable("read", f"{self.uri}/{key}", f"it ends {length} bytes too early")
        return found[0] if len(found) == 1 else b"".join(found)

    def _pread(self, descriptor: int, key: str, offset: int, length: int) -> bytes:
        with translated("read", self.root / key):
            return os.pread(descriptor, length, offset)


def _sync_removed(directory: Path) -> None:
    try:
        sync_directory(directory)
    except FileNotFoundError:  # somebody else deleted its last file, and removed it: that is to last, too
        sync_directory(directory.parent)


def _stat(key: str, result: os.stat_result) -> Stat:
    etag = f"{result.st_ino:x}-{result.st_mtime_ns:x}-{result.st_ctime_ns:x}-{result.st_size:x}"
    return Stat(key, result.st_size, etag, result.st_mtime)


def _files(directory: Path) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(directory):
        if not entry.name.startswith(TEMPORARY) and entry.is_file(follow_symlinks=False):
            yield entry


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(TEMPORARY):
            yield from _entries(Path(entry.path))
        else:
            yield entry


def _blocks(
    operation: str,
    path: Path,
    data: Sequence[Buffer],
    deadline: Deadline,
    *,
    progress: Progress | None = None,
    reading: Reading | None = None,
    pace: Pace | None = None,
) -> Iterator[memoryview]:
    """What to write next, shown to `reading` while it comes through the cache."""
    offset = 0
    for piece in pieces(data, _PIECE_BYTES):
        require_time(operation, str(path), deadline)
        for block in blocks(piece):
            if reading is not None:
                reading(offset, block)
            if pace is not None:
                pace(len(block))
            yield block
            offset += len(block)
        if progress is not None:
            progress(size_of(piece))
