"""What the rest of spotckpt knows of a bucket: seven verbs on keys below one root.

A `Store` is rooted at a run's URI, so keys are relative (`attempts/0003.json`). It knows nothing of snapshots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from spotckpt.deadline import Deadline
from spotckpt.errors import AlreadyExists, NotFound

Buffer = bytes | bytearray | memoryview
Progress = Callable[[int], None]
"""Called with the number of bytes that have just been confirmed; raising in it gives the transfer up."""


@dataclass(frozen=True)
class Stat:
    """An object as the store reports it. `etag` changes whenever the bytes are written again."""

    key: str
    size_bytes: int
    etag: str


class Store(ABC):
    """Bytes by key. Every verb ends by its deadline; None means `Settings.call_timeout_s` from now."""

    uri: str

    @abstractmethod
    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """Writes the object if there is none: of any number of callers exactly one succeeds.

        Raises:
            AlreadyExists: there is one.
            OutcomeUnknown: no answer came; the object may be there now.
        """

    def put_if_absent(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> bool:
        """`create`, but at ease with an earlier try of ours that landed without an answer.

        `data` must be unique to the writer (records carry a nonce), so the same bytes at the key are our own.

        Returns:
            True if this call wrote the object, False if exactly these bytes were there already.

        Raises:
            AlreadyExists: other bytes are there.
        """
        try:
            self.create(key, data, deadline=deadline)
        except AlreadyExists:
            if self.read(key, limit_bytes=max(len(data), 1), deadline=deadline) != data:
                raise
            return False
        return True

    @abstractmethod
    def put(
        self,
        key: str,
        data: Sequence[Buffer],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
    ) -> Stat:
        """Writes the concatenated buffers, replacing what was there; visible wholly or not at all.

        The size that the store reports afterwards is checked. A transfer given up leaves nothing behind
        (multipart uploads are aborted).
        """

    @abstractmethod
    def read(self, key: str, *, limit_bytes: int, deadline: Deadline | None = None) -> bytes:
        """The whole object.

        Raises:
            NotFound: there is none.
            LimitExceeded: it is longer than `limit_bytes`; nothing of that size was allocated.
        """

    @abstractmethod
    def read_ranges(
        self,
        key: str,
        ranges: Sequence[tuple[int, int]],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """The bytes of each (offset, length), in order, read in parallel, all of one version of the object.

        Raises:
            NotFound: there is no object.
            Unavailable: it was replaced between two ranges, or a body came short.
        """

    @abstractmethod
    def list(self, prefix: str, *, deadline: Deadline | None = None) -> list[Stat]:
        """Every object whose key starts with `prefix`, each once, in no order that means anything; empty if none."""

    @abstractmethod
    def stat(self, key: str, *, deadline: Deadline | None = None) -> Stat:
        """The object's size and etag.

        Raises:
            NotFound: there is none.
        """

    def exists(self, key: str, *, deadline: Deadline | None = None) -> bool:
        """Whether there is such an object. Denied is not missing: it raises."""
        try:
            self.stat(key, deadline=deadline)
        except NotFound:
            return False
        return True

    @abstractmethod
    def delete(self, keys: Iterable[str], *, deadline: Deadline | None = None) -> None:
        """Deletes the objects; those that are not there are no error."""
