"""A store that fails where it is told to.

Every verb that reaches the wrapped store is one operation with a number, from 1; each report of progress inside a `put`
is one more. A `Faults` names the number and what happens there, so that `enumerate_faults` can cut each operation of a
scenario once, and forgets none.

`exists` and `put_if_absent` are made of `stat`, `create` and `read`, each of which counts by itself.
"""

from __future__ import annotations

import builtins
import enum
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, TypeVar, cast

from spotckpt.deadline import Deadline
from spotckpt.errors import OutcomeUnknown, StoreError, Unavailable
from spotckpt.store.base import Buffer, Progress, Reading, Span, Stat, Store, Unfinished

T = TypeVar("T")
Gate = Callable[[str], AbstractContextManager[object]]
"""Given an operation's name: entering it may hold the caller, and the operation is done inside."""

WRITES = ("create", "put", "delete")


def no_gate(operation: str) -> AbstractContextManager[object]:
    """Holds nobody."""
    return nullcontext()


class Crash(BaseException):
    """The process was killed here: nothing may catch this, and nothing after it reaches the store."""


class Kind(enum.Enum):
    """What happens at the chosen operation."""

    DIE_BEFORE = "dies before"
    DIE_AFTER = "dies after"
    DIE_IN_FLIGHT = "dies, the request lands later"
    TORN = "dies inside"
    LOST_REPLY = "loses the reply"
    ONCE = "fails once"
    FOREVER = "fails for ever"
    EMPTY_LIST = "lists nothing, once"


DEATHS = (Kind.DIE_BEFORE, Kind.DIE_AFTER, Kind.DIE_IN_FLIGHT, Kind.TORN)


class Faults:
    """The operations of one process: how many there were, and the one that fails.

    Args:
        kind: what happens.
        at: the number of the operation; 0 is never.
        tears: a death inside a write leaves the first half of the bytes visible, as no store that we rely on does.
    """

    def __init__(self, kind: Kind = Kind.ONCE, at: int = 0, *, tears: bool = False) -> None:
        self.kind = kind
        self.at = at
        self.tears = tears
        self.trace: list[str] = []
        self.fired = False
        self.dead = False
        self._in_flight: list[Callable[[], object]] = []
        self._landing = False
        self._one_at_a_time = threading.RLock()

    def __str__(self) -> str:
        what = self.trace[self.at - 1] if 0 < self.at <= len(self.trace) else "never reached"
        return f"{self.kind.value} at operation {self.at} ({what})"

    def land(self) -> None:
        """The request that was under way when the process died reaches the store now; nobody hears the answer."""
        self._landing = True
        while self._in_flight:
            with suppress(StoreError):
                self._in_flight.pop()()
        self._landing = False

    def call(self, verb: str, key: str, act: Callable[[], T], tear: Callable[[], object] | None = None) -> T:
        """Runs one operation, or what is to go wrong with it; of several threads' one at a time."""
        with self._one_at_a_time:
            return self._call(verb, key, act, tear)

    def _call(self, verb: str, key: str, act: Callable[[], T], tear: Callable[[], object] | None) -> T:
        if not self._due(f"{verb} {key}"):
            return act()
        self.fired = True
        if self.kind in DEATHS:
            self._die(act, tear, write=verb in WRITES)
        if self.kind is Kind.LOST_REPLY:
            with suppress(StoreError):
                act()
            raise OutcomeUnknown(verb, key, "the connection was reset before the reply", hint="injected")
        if self.kind is Kind.EMPTY_LIST:
            return cast("T", [])
        raise Unavailable(verb, key, "503 Slow Down", hint="injected")

    def inner(self, key: str) -> None:
        """A point inside a `put`."""
        if self._landing or not self._due(f"put(inner) {key}"):
            return
        self.fired = True
        if self.kind in DEATHS:
            self.dead = True
            raise Crash(str(self))
        raise Unavailable("put", key, "the connection was reset", hint="injected")

    def _due(self, what: str) -> bool:
        if self.dead:
            raise Crash("already dead")
        self.trace.append(what)
        number = len(self.trace)
        return self.at > 0 and (number == self.at or (number > self.at and self.kind is Kind.FOREVER))

    def _die(self, act: Callable[[], object], tear: Callable[[], object] | None, *, write: bool) -> None:
        if self.kind is Kind.DIE_AFTER:
            with suppress(StoreError):
                act()
        elif self.kind is Kind.DIE_IN_FLIGHT and write:
            self._in_flight.append(act)
        elif self.kind is Kind.TORN and self.tears and tear is not None:
            tear()
        self.dead = True
        raise Crash(str(self))


class FaultyStore(Store):
    """Wraps a store; several of one process share one `Faults`.

    Args:
        inner: the real store.
        faults: where it fails.
        gate: for a scheduler to hold the caller before each operation.
    """

    def __init__(self, inner: Store, faults: Faults, *, gate: Gate = no_gate) -> None:
        self.uri = inner.uri
        self.inner = inner
        self.faults = faults
        self.gate = gate

    def _run(self, verb: str, key: str, act: Callable[[], T], tear: Callable[[], object] | None = None) -> T:
        with self.gate(f"{verb} {key}"):
            return self.faults.call(verb, key, act, tear)

    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        self._run(
            "create",
            key,
            lambda: self.inner.create(key, data, deadline=deadline),
            lambda: self.inner.create(key, data[: len(data) // 2], deadline=deadline),
        )

    def put(
        self,
        key: str,
        data: Sequence[Buffer],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        reading: Reading | None = None,
    ) -> Stat:
        def inner_point(num_bytes: int) -> None:
            self.faults.inner(key)
            if progress is not None:
                progress(num_bytes)

        whole = b"".join(bytes(buffer) for buffer in data)
        return self._run(
            "put",
            key,
            lambda: self.inner.put(key, data, deadline=deadline, progress=inner_point, reading=reading),
            lambda: self.inner.put(key, [whole[: len(whole) // 2]], deadline=deadline),
        )

    def read(self, key: str, *, limit_bytes: int, deadline: Deadline | None = None) -> bytes:
        return self._run("read", key, lambda: self.inner.read(key, limit_bytes=limit_bytes, deadline=deadline))

    def read_into(self, key: str, spans: Sequence[Span], **options: Any) -> None:
        self._run("read_into", key, lambda: self.inner.read_into(key, spans, **options))

    def list(self, prefix: str, *, deadline: Deadline | None = None) -> list[Stat]:
        return self._run("list", prefix, lambda: self.inner.list(prefix, deadline=deadline))

    def stat(self, key: str, *, deadline: Deadline | None = None) -> Stat:
        return self._run("stat", key, lambda: self.inner.stat(key, deadline=deadline))

    def delete(self, keys: Iterable[str], *, deadline: Deadline | None = None) -> None:
        wanted = list(keys)
        self._run(
            "delete",
            " ".join(wanted),
            lambda: self.inner.delete(wanted, deadline=deadline),
            lambda: self.inner.delete(wanted[: len(wanted) // 2], deadline=deadline),
        )

    def settle(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        self.inner.settle(key, data, deadline=deadline)

    def time(self, *, deadline: Deadline | None = None) -> float:
        return self._run("time", "", lambda: self.inner.time(deadline=deadline))

    def unfinished(self, *, deadline: Deadline | None = None) -> builtins.list[Unfinished]:
        return self._run("unfinished", "", lambda: self.inner.unfinished(deadline=deadline))

    def discard(self, write: Unfinished, *, deadline: Deadline | None = None) -> None:
        self._run("delete", write.name, lambda: self.inner.discard(write, deadline=deadline))


def enumerate_faults(kind: Kind, scenario: Callable[[Faults], object], *, limit: int = 500) -> list[str]:
    """Runs the scenario once without a fault, and then with one at each of its operations that the kind concerns.

    A lost reply concerns only writes, an empty list only listings. Who dies after, or inside of, what is no write
    leaves all as it was before, which dying before it has shown.

    Returns:
        The operations at which it fired.
    """
    whole = Faults(kind, limit)
    scenario(whole)
    assert len(whole.trace) < limit, f"still not through after {limit} operations"
    concerned = [number for number, what in enumerate(whole.trace, 1) if _is_concerned(kind, what.split()[0])]
    assert concerned, "the fault never fired"
    for number in concerned:
        faults = Faults(kind, number)
        scenario(faults)
        again, before = faults.trace[number - 1], whole.trace[number - 1]
        assert faults.fired and again.split("/")[0] == before.split("/")[0], f"not the same twice: {before}, {again}"
    return [whole.trace[number - 1] for number in concerned]


def _is_concerned(kind: Kind, verb: str) -> bool:
    if kind in (Kind.DIE_AFTER, Kind.DIE_IN_FLIGHT, Kind.TORN):
        return verb in (*WRITES, "put(inner)")
    return {Kind.EMPTY_LIST: verb == "list", Kind.LOST_REPLY: verb in WRITES}.get(kind, True)
