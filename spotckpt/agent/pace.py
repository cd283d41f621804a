"""How a training moves: its trainer writes its boundaries into a small shared file, at the cost of a memory write.

No message: a boundary may come every millisecond, an agent may hang, and what was written stays when the trainer dies.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spotckpt.deadline import SYSTEM_CLOCK

PACE_NAME = "pace"
_RECORD = struct.Struct("<qddd")
_SUM = struct.Struct("<L")
_SIZE_BYTES = _RECORD.size + _SUM.size
_LOOKS = 3
_KEPT = 31
_REFRESH_S = 1.0
_PATIENCE = 1.5
_PATIENCE_S = 0.5


@dataclass(frozen=True)
class Pace:
    """The last boundary and what came before. Times are seconds of the boot-time clock.

    Attributes:
        step: boundaries counted.
        at: when the last one was.
        began: when this attempt's first one was.
        usual_s: between two boundaries, the median of the last ones.
    """

    step: int
    at: float
    began: float
    usual_s: float

    def next_s(self, now: float) -> float | None:
        """Seconds until the next boundary; None if it is overdue, as in an evaluation, or nothing is known."""
        waited = now - self.at
        if not self.usual_s or waited > _PATIENCE * self.usual_s + _PATIENCE_S:
            return None
        return max(0.0, self.usual_s - waited)


class Boundaries:
    """Makes a pace of them."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_KEPT)
        self._at = self._began = self._usual_s = self._refresh_at = 0.0

    def passed(self, step: int, now: float) -> Pace:
        """Takes note of one."""
        if not self._began:
            self._began = now
        else:
            self._recent.append(now - self._at)
            if now >= self._refresh_at or len(self._recent) < _KEPT:
                self._refresh_at = now + _REFRESH_S
                self._usual_s = sorted(self._recent)[len(self._recent) // 2]
        self._at = now
        return Pace(step, now, self._began, self._usual_s)


class PaceWriter:
    """The trainer's end."""

    def __init__(self, path: Path, *, now: Callable[[], float] = SYSTEM_CLOCK.now) -> None:
        self.path = path
        self._now = now
        self._boundaries = Boundaries()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, _SIZE_BYTES)
            self._memory = mmap.mmap(fd, _SIZE_BYTES)
        finally:
            os.close(fd)

    def boundary(self, step: int) -> None:
        """Notes one. Cheap."""
        pace = self._boundaries.passed(step, self._now())
        record = _RECORD.pack(pace.step, pace.at, pace.began, pace.usual_s)
        self._memory[:] = record + _SUM.pack(zlib.crc32(record))


def read_pace(path: Path) -> Pace | None:
    """What the trainer wrote last; None if nothing, or nothing whole."""
    for _ in range(_LOOKS):  # the trainer may be writing
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if len(data) != _SIZE_BYTES:
            return None
        if _SUM.unpack(data[_RECORD.size :])[0] == zlib.crc32(data[: _RECORD.size]):
            return Pace(*_RECORD.unpack(data[: _RECORD.size]))
    return None
