"""The settings of a run, checked once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from spotckpt.address import Metric
from spotckpt.errors import AddressError, SettingError

_UNITS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "hour": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h|hour|d)?")


def parse_seconds(value: float | str | timedelta, *, name: str) -> float:
    """A duration in seconds from `90`, `"90"`, `"10min"`, `"1.5 h"` or a timedelta.

    Raises:
        SettingError: it is negative, not finite or not a duration.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else -1.0
    else:
        seconds = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else -1.0
    if not 0 <= seconds < float("inf"):
        raise SettingError(f"{name}={value!r} is not a duration", hint="write seconds, or 30s, 10min, 2h")
    return seconds


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]i?)?B?")
_SPEED = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B/s")
_SIZES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def parse_bytes(text: str, *, name: str) -> int:
    """A size from `"20GB"`, `"1.5 GiB"` or `"1000"`.

    Raises:
        SettingError: it is no size above zero.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _SIZES[match[2] or ""]) if match else 0
    if size <= 0:
        raise SettingError(f"{name}={text!r} is no size", hint="write bytes, or 20GB, 1.5GiB")
    return size


def size_text(num_bytes: float) -> str:
    """`512 B`, `21.3 MB`: in powers of ten, as speeds are."""
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.95 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def parse_speed(value: float | str, *, name: str) -> float:
    """Bytes per second from `2e7`, `"20MB/s"` or `"1.5 MiB/s"`.

    Raises:
        SettingError: it is no speed above zero.
    """
    if isinstance(value, str):
        match = _SPEED.fullmatch(value.strip())
        speed = float(match[1]) * _SIZES[match[2] or ""] if match else 0.0
    else:
        speed = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    if not 0 < speed < float("inf"):
        raise SettingError(f"{name}={value!r} is no speed", hint="write bytes per second, or 20MB/s, 1.5MiB/s")
    return speed


@dataclass(frozen=True)
class Every:
    """How often a periodic snapshot is due: after `seconds`, or after `steps` boundaries (one of them is 0)."""

    seconds: float = 0.0
    steps: int = 0

    @classmethod
    def parse(cls, value: float | str | timedelta) -> Every:
        """Reads `"10min"`, seconds, or `"500 steps"`."""
        if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+)\s*steps?\s*", value)):
            if int(match[1]) < 1:
                raise SettingError(f"every={value!r} must be at least one step", hint="as in every='500 steps'")
            return cls(steps=int(match[1]))
        return cls(seconds=parse_seconds(value, name="every"))

    def __str__(self) -> str:
        if self.steps:
            return f"{self.steps} steps"
        for unit in ("d", "h", "min"):
            if self.seconds % _UNITS[unit] == 0:
                return f"{self.seconds / _UNITS[unit]:.0f}{unit}"
        return f"{self.seconds:f}".rstrip("0").rstrip(".") + "s"


@dataclass(frozen=True)
class Best:
    """The `count` best snapshots by a metric: `valid/top1:max:3`."""

    metric: Metric
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Best:
        """Reads `SET/NAME:max`, with `:COUNT` after it or not."""
        match = re.fullmatch(r"(.+?:(?:min|max))(?::([1-9][0-9]{0,8}))?", text)
        try:
            return cls(Metric.parse(match[1] if match else text), int(match[2] or 1) if match else 1)
        except AddressError as error:
            raise SettingError(f"keep: best={text} is no metric: {error.message}", hint=_KEEP_HINT) from error

    def __str__(self) -> str:
        return f"{self.metric}:{self.count}"


_KEEP_HINT = 'as in keep="last=5, every=1000 steps, every=6h, best=valid/top1:max:3"'


@dataclass(frozen=True)
class Keep:
    """Which snapshots are kept, beside those that must be: the others are pruned.

    Attributes:
        last: the newest of a lineage, at least one.
        every: the first in each stretch of so many steps, or of so much time.
        best: by metrics that were measured on the very weights.
    """

    last: int = 1
    every: tuple[Every, ...] = ()
    best: tuple[Best, ...] = ()

    def __post_init__(self) -> None:
        if self.last < 1:
            raise SettingError(f"keep: last={self.last} is less than one", hint="the newest is always kept")
        if any(not one.steps and not one.seconds for one in self.every):
            raise SettingError("keep: every=0 keeps nothing", hint=_KEEP_HINT)

    @classmethod
    def parse(cls, text: str) -> Keep:
        """Reads `last=N`, `every=DURATION`, `every=N steps` and `best=SET/NAME:max:COUNT`, with commas between them."""
        rules = list(_rules(text))
        last = [_count(value) for name, value in rules if name == "last"]
        if len(last) > 1:
            raise SettingError(f"keep={text!r} has last twice", hint=_KEEP_HINT)
        every = tuple(Every.parse(value) for name, value in rules if name == "every")
        return cls(last[0] if last else 1, every, tuple(Best.parse(value) for name, value in rules if name == "best"))

    def __str__(self) -> str:
        rules = [f"last={self.last}", *(f"every={one}" for one in self.every), *(f"best={one}" for one in self.best)]
        return ", ".join(rules)


def _rules(text: str) -> Iterator[tuple[str, str]]:
    for rule in text.split(","):
        name, separator, value = (part.strip() for part in rule.partition("="))
        if name not in ("last", "every", "best") or not separator or not value:
            raise SettingError(f"keep={text!r}: {rule.strip()!r} is no rule", hint=_KEEP_HINT)
        yield name, value


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise SettingError(f"keep: last={text} is no count", hint=_KEEP_HINT)
    return int(text)


@dataclass(frozen=True)
class Settings:
    """What a run may be told; all durations are in seconds.

    Attributes:
        every: how often a periodic snapshot is staged.
        upload_every_s: at most how often a periodic one is uploaded; 0 is each. Whatever ends the training uploads the
            newest at once.
        upload_limit: the most bytes per second that are uploaded, also under a notice; 0 is as many as go.
        overlap: whether the bulk is copied while the next forward and backward run; None: where that costs less.
        keep_best: snapshot whenever this metric improves on the weights just evaluated.
        keep: what the agent keeps when it prunes; None: nothing is ever deleted.
        stale_after_s: an attempt whose heartbeat did not change for this long is taken for dead.
        reserve_s: what of a notice's time is kept for a slower line, the release, and clocks that disagree.
        sigterm_grace_s: how long after SIGTERM the trainer may still work.
        call_timeout_s: the deadline of one operation on the store, retries included; bulk transfers get more by size.
        metadata_endpoint: where a private agent asks for notices; empty is the real EC2 endpoint.
        takeover: whether an attempt that shows signs of life is not waited for.
    """

    every: Every = Every(seconds=600.0)
    upload_every_s: float = 0.0
    upload_limit: float = 0.0
    overlap: bool | None = None
    keep_best: Metric | None = None
    keep: Keep | None = None
    stale_after_s: float = 60.0
    reserve_s: float = 10.0
    sigterm_grace_s: float = 10.0
    call_timeout_s: float = 60.0
    metadata_endpoint: str = ""
    takeover: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.upload_every_s < float("inf"):
            raise SettingError(f"upload_every_s={self.upload_every_s!r} is not a duration", hint="give seconds")
        if not 0 <= self.reserve_s < 86400:
            raise SettingError(f"reserve_s={self.reserve_s!r} is not between 0 s and a day", hint="give seconds")
        if not 0 <= self.upload_limit < float("inf"):
            raise SettingError(f"upload_limit={self.upload_limit!r} is no speed", hint="give bytes per second")
        if self.overlap not in (None, True, False):
            raise SettingError(f"overlap={self.overlap!r} is not known", hint="it is True, False or None")
        for name in ("stale_after_s", "sigterm_grace_s", "call_timeout_s"):
            if not 0 < getattr(self, name) < 86400:
                raise SettingError(f"{name}={getattr(self, name)!r} is not between 0 s and a day", hint="give seconds")
