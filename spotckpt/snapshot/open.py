"""The store of a run, together with the runs that it was forked from.

A fork's manifests call what lies in an ancestor `forks/<run id>/packs/...`. Such keys are read there, and never written
or deleted. Everything that reads or writes a run opens it here.
"""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from spotckpt.deadline import Deadline
from spotckpt.errors import Corrupt, Denied, StoreError
from spotckpt.snapshot.catalog import read_run
from spotckpt.snapshot.descent import Ancestor, uri_at
from spotckpt.snapshot.keys import SHARED_PREFIX, split_shared
from spotckpt.store.base import Buffer, Progress, Reading, Span, Stat, Store, Unfinished
from spotckpt.store.open import open_store


def open_run_store(
    uri: str, *, environment: Mapping[str, str] | None = None, call_timeout_s: float = 60.0, **options: Any
) -> WithAncestors:
    """`open_store`, where a fork's keys lead to its ancestors. Nothing is asked of any store yet.

    Args:
        uri: the run, without a selector.
        environment, call_timeout_s: as in `open_store`; for the ancestors too.
        options: of `open_store`, for the run itself.
    """
    inner = open_store(uri, environment=environment, call_timeout_s=call_timeout_s, **options)
    return WithAncestors(inner, lambda other: open_store(other, environment=environment, call_timeout_s=call_timeout_s))


def at(store: Store, key: str) -> str:
    """The key as an error names it when it may be of another run."""
    return key if "://" in key or key.startswith("/") else f"{store.uri}/{key}"


class WithAncestors(Store):
    """A run's store, in which the keys of its ancestors can be read too.

    Args:
        inner: rooted at the run.
        open_: gives the store at a URI.
    """

    def __init__(self, inner: Store, open_: Callable[[str], Store]) -> None:
        self.inner = inner
        self.uri = inner.uri
        self.call_timeout_s = inner.call_timeout_s
        self.clock = inner.clock
        self._open = open_
        self._ancestors: Mapping[str, Ancestor] | None = None
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """See `Store.create`."""
        self.inner.create(self._own("create", key), data, deadline=deadline)

    def put_if_absent(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> bool:
        """See `Store.put_if_absent`."""
        return self.inner.put_if_absent(self._own("put_if_absent", key), data, deadline=deadline)

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
        return self.inner.put(self._own("put", key), data, deadline=deadline, progress=progress, reading=reading)

    def read(self, key: str, *, limit_bytes: int, deadline: Deadline | None = None) -> bytes:
        """See `Store.read`."""
        with self._where(key) as (store, name):
            return store.read(name, limit_bytes=limit_bytes, deadline=deadline)

    def read_into(self, key: str, spans: Sequence[Span], **options: Any) -> None:
        """See `Store.read_into`."""
        with self._where(key) as (store, name):
            store.read_into(name, spans, **options)

    def list(self, prefix: str, *, deadline: Deadline | None = None) -> list[Stat]:
        """See `Store.list`; the run's own."""
        return self.inner.list(prefix, deadline=deadline)

    def stat(self, key: str, *, deadline: Deadline | None = None) -> Stat:
        """See `Store.stat`."""
        with self._where(key) as (store, name):
            return store.stat(name, deadline=deadline)

    def delete(self, keys: Iterable[str], *, deadline: Deadline | None = None) -> None:
        """See `Store.delete`."""
        self.inner.delete([self._own("delete", key) for key in keys], deadline=deadline)

    def settle(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """See `Store.settle`."""
        self.inner.settle(self._own("settle", key), data, deadline=deadline)

    def time(self, *, deadline: Deadline | None = None) -> float:
        """See `Store.time`."""
        return self.inner.time(deadline=deadline)

    def unfinished(self, *, deadline: Deadline | None = None) -> builtins.list[Unfinished]:
        """See `Store.unfinished`."""
        return self.inner.unfinished(deadline=deadline)

    def discard(self, write: Unfinished, *, deadline: Deadline | None = None) -> None:
        """See `Store.discard`."""
        self._own("discard", write.key)
        self.inner.discard(write, deadline=deadline)

    def close(self) -> None:
        """See `Store.close`."""
        for store in (self.inner, *self._stores.values()):
            store.close()

    def _own(self, operation: str, key: str) -> str:
        if key.startswith(SHARED_PREFIX):
            raise Denied(operation, key, "it belongs to another run, which this one was forked from")
        return key

    @contextmanager
    def _where(self, key: str) -> Iterator[tuple[Store, str]]:
        """The store that holds the object, and its key there. What goes wrong in an ancestor is told with its URI."""
        if not key.startswith(SHARED_PREFIX):
            yield self.inner, key
            return
        run_id, name = split_shared(key)
        store = self.ancestor(run_id)
        try:
            yield store, name
        except StoreError as error:
            raise type(error)(error.operation, at(store, error.key), error.cause, hint=error.hint) from error

    def ancestor(self, run_id: str) -> Store:
        """The store of an ancestor.

        Raises:
            Corrupt: `run.json` does not say where it is.
        """
        with self._lock:
            if self._ancestors is None:
                record = read_run(self.inner)
                self._ancestors = {one.run_id: one for one in record.forked_from} if record else {}
            found = self._ancestors.get(run_id)
            uri = uri_at(self.uri, found.path) if found is not None and found.path is not None else None
            if uri is None:
                raise Corrupt(f"run.json does not say where the run {run_id} lies", hint="use another snapshot")
            return self._stores.setdefault(run_id, self._stores.get(run_id) or self._open(uri))
