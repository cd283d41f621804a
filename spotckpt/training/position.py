"""The data position: which epoch, which loop of it, which batch, and the generators that the order depends on.

A batch order cannot be restored by setting the generators to where they were at the snapshot: the order was drawn earlier.
So a loop remembers the generators' state at its start. A resume sets that state, makes a new iterator, draws and drops the
batches that were consumed, and sets the state of the snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar

from spotckpt.training.rng import Generator

T = TypeVar("T")

Resume = Literal["replay", "skip"]


class Batches(Generic[T]):
    """What `Position.batches` returns: iterate it once; `len` is the loader's."""

    def __iter__(self) -> Iterator[T]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


class Position:
    """Where a training is in its loops. Drives `run.epochs`, `run.batches` and `run.steps`.

    It owns the state of all generators: the global ones and those that are watched are in `state()`, and are put back
    at the moment when the loops arrive at the loaded position.

    Args:
        say: told, once each, what a resume cannot reproduce.
        progress: called as `progress(done, total)` while batches are replayed; may raise to stop.
    """

    def __init__(
        self, *, say: Callable[[str], None], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The epoch that `epochs` yielded last; after its end the next one; 0 without epochs."""
        raise NotImplementedError

    @property
    def batch(self) -> int:
        """In a loop's body the index of its batch, at the boundary after it the number consumed; 0 outside."""
        raise NotImplementedError

    @property
    def resuming(self) -> bool:
        """Whether a position was loaded and the loops have not arrived there yet."""
        raise NotImplementedError

    def watch(self, name: str, generator: Generator) -> None:
        """Makes a tracked generator part of the position: it may govern the order of batches."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """The position and all generators' states, encodable; while `resuming`, what was loaded."""
        raise NotImplementedError

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over a decoded `state()`; before the first loop. The loops then lead there."""
        raise NotImplementedError

    def arrive(self) -> None:
        """Puts the generators of a loaded position back now, for a program without our loops. Idempotent."""
        raise NotImplementedError

    def epochs(self, num_epochs: int, *, on_epoch_end: Callable[[], None]) -> Iterator[int]:
        """Yields the epochs that are left; after each body the position is the next epoch, then `on_epoch_end()`.

        A loop that was left by `break` yields nothing after a resume; one that was exhausted goes on if `num_epochs`
        is larger now.
        """
        raise NotImplementedError

    def batches(self, loader: Iterable[T], *, resume: Resume = "replay", on_boundary: Callable[[], None]) -> Batches[T]:
        """Yields the batches that are left; `on_boundary()` after each body, before the next batch is fetched.

        Raises:
            UsageError: two loops at once, or one iterator used in two loops.
            MismatchError: on resume, when the loader has fewer batches than were consumed.
        """
        raise NotImplementedError

    def steps(self, num_steps: int, *, on_boundary: Callable[[], None]) -> Iterator[int]:
        """Yields the steps that are left, counted from 0; `on_boundary()` after each body."""
        raise NotImplementedError
