"""How fast bytes go to a store and come back: one object, with the very code that snapshots travel by."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from spotckpt.agent.bandwidth import Bandwidth
from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.doctor.facts import Speed
from spotckpt.errors import StoreError
from spotckpt.store.base import MIB, Store

FIRST_BYTES = 32 * MIB
MOST_BYTES = 512 * MIB
_TELLING_S = 1.0
"""An object that took less than this says little of a fast line: a larger one follows."""
_SMALL_BYTES = MIB
BLOCK_BYTES = 16 * MIB
_BUFFERS = 8


class _EnoughError(Exception):
    """The time that a measurement may take is over."""


class Meter:
    """Counts what moves, from `begin` on, and gives the transfer up after some seconds. Threads may call it."""

    def __init__(self, *, seconds: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._bandwidth = Bandwidth()
        self.total = 0

    def __call__(self, count: int) -> None:
        """So many bytes more; nothing is counted, nor given up, before `begin`."""
        now = self._clock.now()
        with self._lock:
            if self._began is None:
                return
            self.total += count
            self._bandwidth.sent(now, self.total)
            if now - self._began > self._seconds:
                raise _EnoughError

    def run(self, transfer: Callable[[], object]) -> _Transfer:
        """Measures it. Raises what it raises, but for being given up."""
        self._bandwidth, self.total = Bandwidth(), 0
        began = self._began = self._clock.now()
        self._bandwidth.begin(began)
        try:
            transfer()
            whole = True
        except _EnoughError:
            whole = False
        finally:
            self._began = None
        now = self._clock.now()
        self._bandwidth.end(now, whole=whole)
        return _Transfer(self._bandwidth.estimate(now), self.total, now - began, whole)


@dataclass(frozen=True)
class _Transfer:
    bytes_per_s: float | None
    moved_bytes: int
    seconds: float
    whole: bool

    @property
    def speed(self) -> Speed:
        why = "" if self.bytes_per_s else f"nothing got through in {self.seconds:.0f} s"
        return Speed(self.bytes_per_s, self.moved_bytes, why)


def measure(store: Store, key: str, sent: Meter | None, *, seconds: float) -> tuple[Speed, Speed]:
    """Uploads and downloads an object of that key; each takes about that long at most, and moves at most half a GiB.

    Args:
        store: where to.
        key: is replaced.
        sent: what the store tells of bytes on their way; None if it tells of those that arrived only.
        seconds: for each direction.

    Returns:
        Upload and download.
    """
    upload, size_bytes = _upload(store, key, sent, seconds=seconds)
    if not size_bytes:
        return upload, Speed(why="there is nothing to download")
    try:
        return upload, _download(store, key, size_bytes, seconds=seconds)
    except StoreError as error:
        return upload, Speed(why=error.cause)


def _upload(store: Store, key: str, sent: Meter | None, *, seconds: float) -> tuple[Speed, int]:
    """The speed, and the size of the object that lies there then; 0 for none."""
    block = os.urandom(BLOCK_BYTES)
    meter = sent or Meter(seconds=seconds)
    size_bytes = FIRST_BYTES
    try:
        while True:
            data = [block] * (size_bytes // BLOCK_BYTES)
            done = meter.run(lambda data=data: _put(store, key, data, meter, sent, seconds=seconds))  # type: ignore[misc]
            if not done.whole:
                small = [block[:_SMALL_BYTES]]
                store.put(key, small)
                return done.speed, _SMALL_BYTES
            if done.seconds >= _TELLING_S or size_bytes >= MOST_BYTES or not _gives_up(store):
                return done.speed, size_bytes
            size_bytes *= 4
    except StoreError as error:
        return Speed(why=error.cause), 0


def _put(store: Store, key: str, data: list[bytes], meter: Meter, sent: Meter | None, *, seconds: float) -> None:
    until = Deadline.after(seconds + store.call_timeout_s, store.clock)
    store.put(key, data, deadline=until, progress=None if sent is not None else meter)


def _gives_up(store: Store) -> bool:
    # others move whole objects through memory, and are told to stop only afterwards
    return store.uri.startswith(("s3://", "file://"))


def _download(store: Store, key: str, size_bytes: int, *, seconds: float) -> Speed:
    meter = Meter(seconds=seconds)
    span_bytes = max(MIB // 4, min(BLOCK_BYTES, size_bytes // 32))
    buffers = [memoryview(bytearray(span_bytes)) for _ in range(_BUFFERS)]
    spans = [(start, [buffers[start // span_bytes % _BUFFERS]]) for start in range(0, size_bytes, span_bytes)]
    until = Deadline.after(seconds + store.call_timeout_s, store.clock)
    return meter.run(lambda: store.read_into(key, spans, deadline=until, progress=meter)).speed
