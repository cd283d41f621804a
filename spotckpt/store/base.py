"""What the rest of spotckpt knows of a bucket: a few verbs on keys below one root.

A `Store` is rooted at a run's URI, so keys are relative (`attempts/0003.json`). It knows nothing of snapshots.
"""

from __future__ import annotations

import builtins
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import AlreadyExists, LimitExceeded, NotFound, OutcomeUnknown, StoreError, Unavailable

Buffer = bytes | bytearray | memoryview
MIB = 2**20
TEMPORARY = ".tmp-"
"""How the names of unfinished local files start; no key may have a part that starts so."""
BLOCK_BYTES = 256 * 2**10
"""What fits a core's cache: bytes that several look at pass through memory once."""
Progress = Callable[[int], None]
"""Called with the number of bytes that have just been confirmed; raising in it gives the transfer up."""
Reading = Callable[[int, memoryview], None]
"""Called with (offset in the object, bytes) of all that is about to be sent, in order, from the same read as the
checksum. A try that is repeated repeats offsets. Raising in it gives the transfer up."""
Span = tuple[int, Sequence[memoryview]]
"""An offset in an object, and the writable buffers that its bytes from there on go to, one after the other."""
Arrived = Callable[[int], None]
"""Called, in a thread of the transfer, with the index of a span that is there wholly; raising gives the transfer up."""


@dataclass(frozen=True)
class Stat:
    """An object as the store reports it.

    Attributes:
        etag: changes whenever the bytes are written again.
        modified: when they were written, seconds since the epoch by the store's own clock; infinite if it does not
            tell, so that nothing unknown is ever taken for old.
    """

    key: str
    size_bytes: int
    etag: str
    modified: float = field(default=math.inf, compare=False)


@dataclass(frozen=True)
class Unfinished:
    """A write that was begun and has not ended, maybe because its writer died: not an object, but it takes room.

    Attributes:
        key: of the object that it was to become.
        name: how the store tells it from others of the same key.
        began: as `Stat.modified`.
    """

    key: str
    name: str
    began: float


class Store(ABC):
    """Bytes by key. Every verb ends by its deadline; None means `Settings.call_timeout_s` from now."""

    uri: str
    call_timeout_s: float = 60.0
    clock: Clock = SYSTEM_CLOCK

    def until(self, deadline: Deadline | None, *, size_bytes: int = 0) -> Deadline:
        """The caller's deadline; without one, `call_timeout_s` from now and a second more per MiB to transfer."""
        return deadline or Deadline.after(self.call_timeout_s + size_bytes / MIB, self.clock)

    def close(self) -> None:
        """Lets go of connections. The store may be used again: it connects anew."""
        return

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
            OutcomeUnknown: no answer came, or what is there could not be read back.
        """
        try:
            self.create(key, data, deadline=deadline)
        except AlreadyExists as conflict:
            if not self._holds(key, data, deadline=deadline):
                raise conflict
            self.settle(key, data, deadline=deadline)
            return False
        return True

    def settle(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """Makes sure that an object of ours, found after an answer was lost, is there to stay."""
        return

    def _holds(self, key: str, data: bytes, *, deadline: Deadline | None) -> bool:
        # What is there may be ours, from a try whose answer was lost: unreadable must not be taken for foreign.
        try:
            return self.read(key, limit_bytes=max(len(data), 1), deadline=deadline) == data
        except LimitExceeded:
            return False
        except StoreError as error:
            raise OutcomeUnknown(
                "put_if_absent", error.key, f"an object is there, which may be our own: {error.cause}", hint=error.hint
            ) from error

    @abstractmethod
    def put(
        self,
        key: str,
        data: Sequence[Buffer],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        reading: Reading | None = None,
    ) -> Stat:
        """Writes the concatenated buffers, replacing what was there; visible wholly or not at all.

        The size that the store reports afterwards is checked. A transfer given up leaves nothing behind
        (multipart uploads are aborted).
        """

    def put_resumed(
        self, key: str, data: Sequence[Buffer], *, deadline: Deadline | None = None, progress: Progress | None = None
    ) -> Stat:
        """`put`, which goes on where an earlier one with the same bytes was interrupted, where the store can do that.

        Nothing is visible before all is there. What a transfer that is given up has sent stays, unfinished.
        """
        return self.put(key, data, deadline=deadline, progress=progress)

    @abstractmethod
    def read(self, key: str, *, limit_bytes: int, deadline: Deadline | None = None) -> bytes:
        """The whole object.

        Raises:
            NotFound: there is none.
            LimitExceeded: it is longer than `limit_bytes`; nothing of that size was allocated.
        """

    @abstractmethod
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
        """Fills the buffers of every span, all from one version of the object.

        Args:
            key: the object.
            spans: where the bytes are and where they go; the store cuts long ones and reads in parallel.
            deadline: for the whole.
            progress: told the bytes that came.
            arrived: told each span once, when it is complete; its buffers are not written again.
            etag: the version that is wanted; None asks the store which one there is.
            width: how many requests at a time; None is what the store finds best.

        Raises:
            NotFound: there is no object.
            Replaced: it is not, or no longer, the version that is wanted.
            Unavailable: a body came short.
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
        """Deletes the objects; those that are not there are no error. When it returns they stay deleted."""

    def time(self, *, deadline: Deadline | None = None) -> float:
        """Now by the clock of `Stat.modified`; 0 if the store does not tell, so that nothing is old."""
        return 0.0

    def unfinished(self, *, deadline: Deadline | None = None) -> builtins.list[Unfinished]:
        """Every write that was begun and neither ended nor given up; also those that go on just now."""
        return []

    def discard(self, write: Unfinished, *, deadline: Deadline | None = None) -> None:
        """Gives an unfinished write up; one that is not there any more is no error."""
        return


def require_time(operation: str, key: str, deadline: Deadline) -> None:
    """Raises Unavailable if nothing is left of the deadline."""
    if deadline.passed:
        raise Unavailable(operation, key, "its deadline has passed")


def check_key(key: str) -> str:
    """The key itself, when it cannot lead outside of the root.

    Raises:
        ValueError: it is empty, absolute, has an empty, `.` or `..` part, a NUL, a backslash or a temporary's name.
    """
    parts = key.split("/")
    if "\0" in key or "\\" in key or any(part in ("", ".", "..") or part.startswith(TEMPORARY) for part in parts):
        raise ValueError(f"{key!r} is no key of a store")
    return key


def check_prefix(prefix: str) -> str:
    """The prefix itself: a key, a key with a slash at its end, or nothing."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def pieces(data: Sequence[Buffer], size_bytes: int) -> Iterator[list[memoryview]]:
    """Cuts the concatenated buffers into pieces of that size, the last one shorter, without copying."""
    piece: list[memoryview] = []
    room = size_bytes
    for buffer in data:
        rest = memoryview(buffer).cast("B")
        while len(rest):
            piece.append(rest[:room])
            room -= len(piece[-1])
            rest = rest[len(piece[-1]) :]
            if not room:
                yield piece
                piece, room = [], size_bytes
    if piece:
        yield piece


def blocks(buffers: Sequence[memoryview]) -> Iterator[memoryview]:
    """The buffers, cut so that each block stays in the cache while several look at it."""
    for buffer in buffers:
        for start in range(0, len(buffer), BLOCK_BYTES):
            yield buffer[start : start + BLOCK_BYTES]


def request_bytes(size_bytes: int) -> int:
    """How much to move in one request when that much is to move: few requests, and enough to do several at a time."""
    return max(16 * MIB, min(32 * MIB, size_bytes // 32 // MIB * MIB))


def size_of(data: Sequence[Buffer]) -> int:
    """The number of bytes in the buffers together."""
    return sum(memoryview(buffer).nbytes for buffer in data)


def size_of_spans(spans: Sequence[Span]) -> int:
    """The number of bytes in all of the spans."""
    return sum(size_of(buffers) for _, buffers in spans)


def without_first(buffers: list[memoryview], count: int) -> list[memoryview]:
    """The buffers without their first `count` bytes, and without those that are used up."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def scatter(data: Buffer, buffers: Sequence[memoryview]) -> None:
    """Copies the bytes into the buffers, which together are as long."""
    view, place = memoryview(data), 0
    for buffer in buffers:
        buffer[:] = view[place : place + len(buffer)]
        place += len(buffer)
