"""What is read only as far as somebody looks: records by attempt, and the snapshots of a lineage in their order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar, overload

from spotckpt.errors import SnapshotError
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.store.halt import Halt
from spotckpt.store.parallel import at_once

T = TypeVar("T")
R = TypeVar("R")

READS_AT_ONCE = 16
READ_AHEAD = 64


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results in order, some requests at a time; the first error is raised, and nothing is begun after it."""
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    found: dict[int, R] = {}

    def one(place: int) -> tuple[int, R]:
        return place, function(items[place])

    jobs = (partial(one, place) for place in range(len(items)))
    at_once(jobs, width=min(READS_AT_ONCE, len(items)), halt=Halt(), done=lambda done: found.update([done]))
    return [found[place] for place in range(len(items))]


class Records(Mapping[int, R]):
    """The records of one kind by attempt, each read when it is asked for the first time.

    `in` tells of an object that is there without reading it; `get` gives None for one that cannot be read.

    Who follows a lineage asks for one attempt after another, downwards. So along with each that has to be read come
    its elders, twice as many as the last time, in parallel: the first costs one read, and a thousand some twenty
    round trips.

    Args:
        listed: the attempts that have one.
        read: gives the record, or None if it is missing or damaged.
    """

    def __init__(self, listed: Iterable[int], read: Callable[[int], R | None]) -> None:
        self._listed = frozenset(listed)
        self._read = read
        self._known: dict[int, R | None] = {}
        self._ahead = 1

    def load(self, numbers: Iterable[int]) -> None:
        """Reads those that are not known yet, whether they were listed or not."""
        unknown = [number for number in numbers if number not in self._known]
        self._known.update(zip(unknown, in_parallel(self._read, unknown), strict=True))

    def load_all(self) -> None:
        """Reads all that were listed."""
        self.load(self._listed)

    @property
    def known(self) -> dict[int, R]:
        """Those that were read so far."""
        return {number: record for number, record in self._known.items() if record is not None}

    def __contains__(self, number: object) -> bool:
        return number in self._listed or self._known.get(number) is not None  # type: ignore[call-overload]

    def __getitem__(self, number: int) -> R:
        if number not in self._known:
            elders = (one for one in self._listed - self._known.keys() if one < number)
            self.load([number, *heapq.nlargest(self._ahead - 1, elders)])
            self._ahead = min(2 * self._ahead, READ_AHEAD)
        found = self._known[number]
        if found is None:
            raise KeyError(number)
        return found

    def __iter__(self) -> Iterator[int]:
        self.load_all()
        return iter(sorted(self.known))

    def __len__(self) -> int:
        self.load_all()
        return len(self.known)


class Listed(Collection[SnapshotId]):
    """Snapshots that are listed when somebody looks for the first time."""

    def __init__(self, look: Callable[[], Iterable[SnapshotId]]) -> None:
        self._look = look

    @cached_property
    def _found(self) -> frozenset[SnapshotId]:
        return frozenset(self._look())

    def __contains__(self, snapshot: object) -> bool:
        return snapshot in self._found

    def __iter__(self) -> Iterator[SnapshotId]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Line(Sequence[SnapshotId]):
    """Snapshots in the order in which they are tried, found as far as somebody looks: a deeper one may cost reads.

    Args:
        found: the snapshots; a generator may return why they end before a start from scratch was reached.
    """

    def __init__(self, found: Iterable[SnapshotId]) -> None:
        self._rest = iter(found)
        self._known: list[SnapshotId] = []
        self._ended = False
        self._cut: SnapshotError | None = None

    @property
    def cut(self) -> SnapshotError | None:
        """Why it ends; None if nothing came before. Looks to the end."""
        len(self)
        return self._cut

    def _reaches(self, index: int) -> bool:
        while len(self._known) <= index and not self._ended:
            try:
                self._known.append(next(self._rest))
            except StopIteration as end:
                self._ended, self._cut = True, end.value
        return len(self._known) > index

    def __bool__(self) -> bool:
        return self._reaches(0)

    def __iter__(self) -> Iterator[SnapshotId]:
        index = 0
        while self._reaches(index):
            yield self._known[index]
            index += 1

    @overload
    def __getitem__(self, index: int) -> SnapshotId: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SnapshotId]: ...
    def __getitem__(self, index: int | slice) -> SnapshotId | Sequence[SnapshotId]:
        if isinstance(index, slice) or index < 0:
            return tuple(self)[index]
        if not self._reaches(index):
            raise IndexError(index)
        return self._known[index]

    def __len__(self) -> int:
        while self._reaches(len(self._known)):
            pass
        return len(self._known)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Line | tuple) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        return f"Line({', '.join(map(str, self._known))}{'' if self._ended else ', …'})"


Found = Generator[SnapshotId, Any, SnapshotError | None]
"""What a `Line` is made of."""
