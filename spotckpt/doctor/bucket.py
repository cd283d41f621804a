"""Asks a store for one thing after the other, each by the verb that a training uses, and leaves nothing there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import closing
from typing import Any

from spotckpt.deadline import Deadline
from spotckpt.doctor.facts import Bucket, Permission, Speed
from spotckpt.doctor.rates import Meter, measure
from spotckpt.errors import AlreadyExists, Denied, NotFound, StoreError
from spotckpt.snapshot.keys import PROBES_PREFIX, probe_key
from spotckpt.store.base import Store, Unfinished
from spotckpt.store.lifecycle import Expiry, read_expiry
from spotckpt.store.open import open_store

_ROUND_TRIPS = 3
_SMALL_BYTES = 64
_NO_UPLOAD = "no-such-upload"
"""The right to abort is asked for with an upload that nobody began: who may is told that there is none."""


def examine(uri: str, *, seconds: float, timeout_s: float) -> Bucket:
    """Everything about the place of a run.

    One object below `doctor/` is written, measured with and deleted; where deleting is denied, it stays, empty.

    Args:
        uri: of the run, without a selector.
        seconds: that each direction is measured for, at most.
        timeout_s: of one request.

    Raises:
        AddressError: there is no such protocol.
    """
    meter = Meter(seconds=seconds)
    with closing(open_store(uri, call_timeout_s=timeout_s, sent=meter)) as store:
        listing = _ask("list", lambda: store.list(PROBES_PREFIX))
        if listing.allowed is None:
            return Bucket(uri=store.uri, trouble=listing.why, hint=listing.hint)
        return _Examination(store, meter).everything(listing, seconds=seconds)


class _Examination:
    def __init__(self, store: Store, meter: Meter) -> None:
        self._store = store
        self._meter = meter
        self._is_s3 = store.uri.startswith("s3://")
        self._key = probe_key(secrets.token_hex(8))
        self._data = self._key.encode()

    def everything(self, listing: Permission, *, seconds: float) -> Bucket:
        try:
            permissions = [self._put(), self._put_again(), self._get(), listing]
            upload, download = self._speeds(permissions[0], seconds=seconds)
            permissions += self._of_uploads(upload) if self._is_s3 else []
            found = {**self._clock(), **self._expiry(), "round_trip_s": self._round_trip_s()}
        finally:
            deleting = self._delete()
        return Bucket(
            uri=self._store.uri, permissions=(*permissions, deleting), upload=upload, download=download, **found
        )

    def _put(self) -> Permission:
        return _ask("put", lambda: self._store.create(self._key, self._data))

    def _put_again(self) -> Permission:
        """Whether the store refuses to create what is there."""
        try:
            self._store.create(self._key, self._data)
        except AlreadyExists:
            return Permission("conditional put", True)
        except StoreError as error:
            return _answer("conditional put", error)
        return Permission("conditional put", False, "If-None-Match is ignored: it overwrote an object")

    def _get(self) -> Permission:
        return _ask("get", lambda: self._store.read(self._key, limit_bytes=_SMALL_BYTES), but=NotFound)

    def _speeds(self, put: Permission, *, seconds: float) -> tuple[Speed, Speed]:
        if not put.allowed:
            return Speed(why="put is not possible"), Speed(why="put is not possible")
        return measure(self._store, self._key, self._meter if self._is_s3 else None, seconds=seconds)

    def _of_uploads(self, upload: Speed) -> list[Permission]:
        in_parts = Permission("multipart", True) if upload.bytes_per_s else Permission("multipart", None, upload.why)
        unfinished = Unfinished(self._key, _NO_UPLOAD, 0.0)
        return [
            in_parts,
            _ask("abort", lambda: self._store.discard(unfinished)),
            _ask("list uploads", self._store.unfinished),
        ]

    def _delete(self) -> Permission:
        answer = _ask("delete", lambda: self._store.delete([self._key]))
        if not answer.allowed:
            _ask("put", lambda: self._store.put(self._key, [b""]))  # what must stay shall at least take no room
        return answer

    def _clock(self) -> dict[str, Any]:
        before = self._store.clock.wall()
        try:
            theirs = self._store.time()
        except StoreError:
            theirs = 0.0
        ours = (before + self._store.clock.wall()) / 2
        return {"clock_ahead_s": theirs - ours if theirs else None}

    def _expiry(self) -> dict[str, Any]:
        if not self._is_s3:
            return {}
        deadline = Deadline.after(self._store.call_timeout_s)
        try:
            expiry: Expiry = read_expiry(self._store.uri, dict(os.environ), deadline)
        except StoreError as error:
            return {"expiry_unknown": error.cause}
        return {"expiry_days": expiry.days, "num_rules": expiry.num_rules}

    def _round_trip_s(self) -> float:
        def once() -> float:
            before = self._store.clock.now()
            _ask("list", lambda: self._store.list(PROBES_PREFIX))
            return self._store.clock.now() - before

        return min(once() for _ in range(_ROUND_TRIPS))


def _ask(name: str, act: Callable[[], object], *, but: type[StoreError] | tuple[()] = ()) -> Permission:
    try:
        act()
    except but:
        return Permission(name, True)
    except StoreError as error:
        return _answer(name, error)
    return Permission(name, True)


def _answer(name: str, error: StoreError) -> Permission:
    return Permission(name, False if isinstance(error, Denied) else None, error.cause, error.hint)
