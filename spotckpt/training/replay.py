"""Starting a loader in the middle: by drawing and dropping batches, or at its sampler.

Facts of torch's `DataLoader` that this relies on (torch/utils/data/dataloader.py and sampler.py): making an iterator
draws a base seed for the workers from the loader's generator or the global one; samplers draw their seed or permutation
when the first index is asked for, which is at once with workers and at the first batch without; with
`persistent_workers` the second iterator of a process draws no base seed and its workers go on with their random
streams.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from spotckpt.errors import MismatchError, UsageError
from spotckpt.training.objects import with_article

Progress = Callable[[int, int], None]

SKIP_IS_INEXACT = (
    "resume='skip' started the loader at its sampler: the order of batches is exact, random augmentation inside its "
    "workers is not the same as without the interruption"
)
SKIP_IS_REPLAY = (
    "resume='skip' needs a DataLoader with a map-style dataset, and this loader is another: its batches are drawn again"
)
PERSISTENT_IS_INEXACT = (
    "a loader with persistent_workers=True went on in a later epoch: the order of batches is exact, random "
    "augmentation inside its workers is not the same as without the interruption"
)


def require_repeatable(loader: object) -> None:
    """Refuses what can only be iterated once and was started elsewhere.

    Generators are fine: they draw nothing before their first item, and a resumed program makes a new one.

    Raises:
        UsageError: an `enumerate`, `zip`, `iter(...)` or the like.
    """
    if not isinstance(loader, Iterator) or isinstance(loader, types.GeneratorType):
        return
    home = type(loader).__module__
    if home in ("builtins", "itertools") or home.startswith(("torch.utils.data", "torchdata.stateful_dataloader")):
        raise UsageError(
            f"run.batches was given {with_article(type(loader).__name__)}, whose start cannot be repeated",
            hint="give it the loader itself, as in enumerate(run.batches(loader))",
        )


def keeps_workers(loader: object) -> bool:
    """Whether its worker processes live on from one epoch to the next."""
    return isinstance(loader, DataLoader) and loader.persistent_workers and loader.num_workers > 0


def has_workers_running(loader: object) -> bool:
    """Whether a loader that keeps its workers has started them."""
    return getattr(loader, "_iterator", None) is not None


def start_workers(loader: Iterable[Any]) -> None:
    """Starts the workers of a loader that keeps them; draws from generators, and what it fetches is dropped."""
    iter(loader)


def can_skip(loader: object) -> bool:
    """Whether batches can be left out by drawing indices only."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def length_of(loader: object) -> int | None:
    """How many batches it says it has; None where it does not say.

    A `DataLoader` of a stream is not asked: once it was, it complains about streams of another length.
    """
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        return None
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, OSError):  # none, or it does not work
        return None


def drop(iterator: Iterator[Any], num_batches: int, progress: Progress) -> None:
    """Draws that many batches.

    Raises:
        MismatchError: there are fewer.
    """
    for done in range(num_batches):
        try:
            next(iterator)
        except StopIteration:
            raise too_few(done, num_batches) from None
        progress(done + 1, num_batches)


def too_few(got: int, wanted: int) -> MismatchError:
    """The error for a loader that became shorter."""
    return MismatchError(
        f"data position: {wanted} batches of this loop were consumed before the snapshot, the loader now has {got}",
        hint="resume with the same data and batch size, or start afresh with @start",
    )


class _LateIndices(Iterator[Any]):
    """Indices of a sampler from the k-th on; drops the first ones when asked for one, not when made."""

    def __init__(self, source: Iterable[Any], num_dropped: int) -> None:
        self._inner = iter(source)
        self._left = num_dropped
        self._wanted = num_dropped

    def advance(self) -> None:
        while self._left:
            try:
                next(self._inner)
            except StopIteration:
                raise too_few(self._wanted - self._left, self._wanted) from None
            self._left -= 1

    def __next__(self) -> Any:
        self.advance()
        return next(self._inner)


class _LateSampler:
    """A sampler or batch sampler without its first k items."""

    def __init__(self, inner: Any, num_dropped: int) -> None:
        self._inner = inner
        self._num_dropped = num_dropped
        self.newest: _LateIndices | None = None

    def __iter__(self) -> Iterator[Any]:
        self.newest = _LateIndices(self._inner, self._num_dropped)
        return self.newest

    def __len__(self) -> int:
        return max(0, len(self._inner) - self._num_dropped)


class LateLoader:
    """A copy of a DataLoader that starts at the k-th batch; the loader itself is left alone."""

    def __init__(self, loader: DataLoader[Any], num_batches: int) -> None:
        self._copy = copy.copy(loader)
        which = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self._sampler = _LateSampler(getattr(loader, which), num_batches)
        # DataLoader forbids setting these after its construction, so that workers never see two versions.
        self._copy.__dict__.update({which: self._sampler, "_iterator": None})

    def start_workers(self) -> None:
        """As the function of this name."""
        start_workers(self._copy)

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._copy)
        if self._sampler.newest is not None:
            # Without workers the sampler draws its order at the first batch: it must, before generators are set again.
            self._sampler.newest.advance()
        return iterator
