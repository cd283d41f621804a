"""Iterators over loaders, at the first batch that is left: made as the uninterrupted program had made them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from spotckpt.training import replay
from spotckpt.training.generators import Generators

T = TypeVar("T")

Resume = Literal["replay", "skip"]


class Iterators:
    """Makes the iterators of a position's loops.

    Args:
        generators: set to where they were at a loop's start.
        say: told what a resume cannot reproduce.
        progress: called as `progress(done, total)` while batches are replayed; may raise to stop.

    Attributes:
        warm: the slots whose loaders keep workers that have been started, here or before the snapshot.
    """

    def __init__(self, generators: Generators, *, say: Callable[[str], None], progress: replay.Progress) -> None:
        self._generators = generators
        self._say = say
        self._progress = progress
        self.warm: set[str] = set()
        self._warm_loaders: weakref.WeakSet[Any] = weakref.WeakSet()

    def sight(self, slot: str, loader: object) -> None:
        """A loop over the loader is entered, whether or not there is anything left of it."""
        self._generators.sight(slot, loader)
        if slot in self.warm and replay.keeps_workers(loader):
            self._warm_loaders.add(loader)

    def begin(self, loader: object, slot: str, saved: Mapping[str, Any] | None, count: int) -> dict[str, Any]:
        """What a position holds of the loop that begins or goes on.

        Args:
            loader: the loop's.
            slot: of the loop.
            saved: what the loaded position held of it; None for a loop that begins.
            count: the batches that were consumed.
        """
        if saved is None:
            start: Mapping[str, Any] = self._generators.start(slot)
            cold = not self._is_warm(loader)
        else:
            start, cold = saved["start"], saved["cold"]
        length = replay.length_of(loader)
        if saved is not None:
            self._compare_length(saved.get("len"), length, count)
        return {"kind": "batches", "count": count, "start": start, "cold": cold, "len": length}

    def make(
        self, loader: Iterable[T], slot: str, active: Mapping[str, Any], *, resume: Resume, resuming: bool
    ) -> Iterator[T]:
        """An iterator at the first batch that is left.

        Args:
            loader: the loop's.
            slot: of the loop.
            active: as `begin` returned it.
            resume: how consumed batches are left out.
            resuming: the loop was running in the loaded position, or it begins there.

        Raises:
            MismatchError: the loader has fewer batches than were consumed.
        """
        count, cold = active["count"], active["cold"]
        late = self._late(loader, count, resume)
        source = late or loader
        if replay.keeps_workers(loader):
            self._prepare_workers(loader, source, cold=cold)
            self.warm.add(slot)
        if resuming or not cold:
            self._generators.set_start(slot, active["start"])
        iterator = iter(source)
        if resuming and late is None:
            replay.drop(iterator, count, self._progress)
        return iterator

    def _compare_length(self, saved: int | None, length: int | None, count: int) -> None:
        if saved is not None and length is not None and saved != length:
            self._say(
                f"warning: the loader had {saved} batches when the snapshot was taken and now has {length}: "
                f"the position (batch {count}) may mean other samples"
            )

    def _late(self, loader: Iterable[T], count: int, resume: Resume) -> replay.LateLoader | None:
        if resume != "skip" or count == 0:
            return None
        if not replay.can_skip(loader):
            self._say(replay.SKIP_IS_REPLAY)
            return None
        if loader.num_workers > 0:  # type: ignore[attr-defined]
            self._say(replay.SKIP_IS_INEXACT)
        return replay.LateLoader(loader, count)  # type: ignore[arg-type]

    def _is_warm(self, loader: object) -> bool:
        """Whether the uninterrupted program would have this loader's workers running by now."""
        if not replay.keeps_workers(loader):
            return False
        return replay.has_workers_running(loader) or loader in self._warm_loaders

    def _prepare_workers(self, loader: Iterable[Any], source: Any, *, cold: bool) -> None:
        """Starts the workers that the uninterrupted program had running: its iterator draws no base seed then."""
        if cold or (source is loader and replay.has_workers_running(loader)):
            return
        self._say(replay.PERSISTENT_IS_INEXACT)
        if isinstance(source, replay.LateLoader):
            source.start_workers()
        else:
            replay.start_workers(source)
