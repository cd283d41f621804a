"""Any other fsspec file system, without the care that S3 and local directories get.

Creation is as exclusive as the file system's own `pipe_file(mode="create")`, between threads of this process always;
`require_conditions` finds those that overwrite. Only `memory://` is tested.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import ConditionsIgnored, LimitExceeded, Replaced, StoreError, Unavailable
from spotckpt.store.base import (
    MIB,
    Arrived,
    Buffer,
    Progress,
    Reading,
    Span,
    Stat,
    Store,
    check_key,
    check_prefix,
    pieces,
    require_time,
    scatter,
    size_of,
    size_of_spans,
)
from spotckpt.store.os_errors import from_os_error, one_line

_CREATING = threading.Lock()
_PIECE_BYTES = 16 * MIB
_CHECKED_BYTES = 64 * MIB
"""How much is read of a version before it is asked again which one it was."""


def _nobody(index: int) -> None:
    pass


class FsspecStore(Store):
    """Objects are the files that `fs` shows below `root`; every object passes through memory as a whole."""

    def __init__(
        self, fs: Any, root: str, *, uri: str, call_timeout_s: float = 60.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._fs = fs
        self._root = root.rstrip("/")
        self.uri = uri.rstrip("/")
        self.call_timeout_s = call_timeout_s
        self.clock = clock

    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """See `Store.create`."""
        path = self._path(key)
        with self._call("create", key, self.until(deadline), mutates=True), _CREATING:
            self._make_parent(path)
            try:
                self._fs.pipe_file(path, bytes(data), mode="create")
            except (NotImplementedError, TypeError, ValueError) as error:
                raise ConditionsIgnored(
                    "create", f"{self.uri}/{key}", f"{type(self._fs).__name__} cannot create exclusively: {error}"
                ) from error

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
        path, size_bytes = self._path(key), size_of(data)
        with self._call("put", key, self.until(deadline, size_bytes=size_bytes), mutates=True):
            self._make_parent(path)
            body = b"".join(data)
            if reading is not None:
                reading(0, memoryview(body))
            self._fs.pipe_file(path, body)
        if progress is not None:
            progress(size_bytes)
        found = self.stat(key, deadline=deadline)
        if found.size_bytes != size_bytes:
            raise StoreError("put", f"{self.uri}/{key}", f"{size_bytes} bytes were sent, {found.size_bytes} are there")
        return found

    def read(self, key: str, *, limit_bytes: int, deadline: Deadline | None = None) -> bytes:
        """See `Store.read`."""
        found = self.stat(key, deadline=deadline)
        if found.size_bytes > limit_bytes:
            raise LimitExceeded(f"{self.uri}/{key} has {found.size_bytes} bytes, at most {limit_bytes} are expected")
        with self._call("read", key, self.until(deadline), mutates=False):
            return bytes(self._fs.cat_file(self._path(key), start=0, end=found.size_bytes))

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
        """See `Store.read_into`. One piece after the other; now and then the version is compared.

        Only then are the spans before it told to have arrived.
        """
        deadline = self.until(deadline, size_bytes=size_of_spans(spans))
        wanted = self.stat(key, deadline=deadline).etag if etag is None else etag
        come: list[int] = []
        unchecked_bytes = 0
        for index, span in enumerate(spans):
            self._fill(key, span, deadline, progress)
            come.append(index)
            unchecked_bytes += size_of(span[1])
            if unchecked_bytes < _CHECKED_BYTES and index + 1 < len(spans):
                continue
            if self.stat(key, deadline=deadline).etag != wanted:
                raise Replaced("read_into", f"{self.uri}/{key}", "the object was replaced while it was read")
            for there in come:
                (arrived or _nobody)(there)
            come, unchecked_bytes = [], 0

    def _fill(self, key: str, span: Span, deadline: Deadline, progress: Progress | None) -> None:
        offset, buffers = span
        for piece in pieces(buffers, _PIECE_BYTES):
            end = offset + size_of(piece)
            with self._call("read_into", key, deadline, mutates=False):
                data = bytes(self._fs.cat_file(self._path(key), start=offset, end=end))
            if len(data) != end - offset:
                raise Unavailable("read_into", f"{self.uri}/{key}", f"the object ends before byte {end}")
            scatter(data, piece)
            offset = end
            if progress is not None:
                progress(len(data))

    def list(self, prefix: str, *, deadline: Deadline | None = None) -> list[Stat]:
        """See `Store.list`."""
        check_prefix(prefix)
        directory = f"{self._root}/{prefix.rpartition('/')[0]}".rstrip("/")
        with self._call("list", prefix, self.until(deadline), mutates=False):
            try:
                found = self._fs.find(directory, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        stats = [self._stat(path.removeprefix(self._root).lstrip("/"), info) for path, info in found.items()]
        return [stat for stat in stats if stat.key.startswith(prefix)]

    def stat(self, key: str, *, deadline: Deadline | None = None) -> Stat:
        """See `Store.stat`."""
        with self._call("stat", key, self.until(deadline), mutates=False):
            info = self._fs.info(self._path(key))
            if info["type"] != "file":
                raise FileNotFoundError(2, "not a file")
            return self._stat(key, info)

    def delete(self, keys: Iterable[str], *, deadline: Deadline | None = None) -> None:
        """See `Store.delete`."""
        deadline = self.until(deadline)
        for key in keys:
            with self._call("delete", key, deadline, mutates=True):
                try:
                    self._fs.rm_file(self._path(key))
                except FileNotFoundError:
                    continue

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _make_parent(self, path: str) -> None:
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _stat(self, key: str, info: dict[str, Any]) -> Stat:
        names = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "created")
        marks = [info[name] for name in names if info.get(name) is not None]
        # memory:// gives the same time as a number in listings and as a datetime elsewhere.
        times = [mark.timestamp() if isinstance(mark, datetime) else mark for mark in marks]
        written = next((float(time) for time in times if isinstance(time, int | float)), math.inf)
        return Stat(key, int(info["size"]), "-".join(map(str, times)), written)

    @contextmanager
    def _call(self, operation: str, key: str, deadline: Deadline, *, mutates: bool) -> Iterator[None]:
        require_time(operation, f"{self.uri}/{key}", deadline)
        try:
            yield
        except OSError as error:
            raise from_os_error(error, operation=operation, key=f"{self.uri}/{key}", mutates=mutates) from error
        except NotImplementedError as error:
            raise StoreError(operation, f"{self.uri}/{key}", one_line(error)) from error
