"""`run.history`: the metrics as they grow. What was never logged reads as empty: a first attempt is no special case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from spotckpt.snapshot.metrics import History, Series

_EMPTY = Series(History(), "", "")


class Curve(Sequence[Any]):
    """The values of one metric, live, in the order of their steps, with `steps` and `epochs` beside them.

    An epoch of -1: logged outside epochs.
    """

    def __init__(self, history: History, set_name: str, name: str) -> None:
        self._history = history
        self._set = set_name
        self._name = name

    @property
    def steps(self) -> list[int]:
        """The step of each value."""
        return self._series().steps

    @property
    def epochs(self) -> list[int]:
        """The epoch of each value."""
        return self._series().epochs

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._series()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._series())

    def __len__(self) -> int:
        return len(self._series())

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def _series(self) -> Series:
        return self._history[self._set].get(self._name, _EMPTY) if self._set in self._history else _EMPTY


class Curves(Mapping[str, Curve]):
    """The metrics of one set by name."""

    def __init__(self, history: History, set_name: str) -> None:
        self._history = history
        self._set = set_name

    def __getitem__(self, name: str) -> Curve:
        return Curve(self._history, self._set, name)

    def __contains__(self, name: object) -> bool:
        return self._set in self._history and name in self._history[self._set]

    def __iter__(self) -> Iterator[str]:
        return iter(self._history[self._set]) if self._set in self._history else iter(())

    def __len__(self) -> int:
        return len(self._history[self._set]) if self._set in self._history else 0


class HistoryView(Mapping[str, Curves]):
    """The sets by name: `history["valid"]["top1"][-1]`."""

    def __init__(self, history: History) -> None:
        self._history = history

    def __getitem__(self, name: str) -> Curves:
        return Curves(self._history, name)

    def __contains__(self, name: object) -> bool:
        return name in self._history

    def __iter__(self) -> Iterator[str]:
        return iter(self._history)

    def __len__(self) -> int:
        return len(self._history)
