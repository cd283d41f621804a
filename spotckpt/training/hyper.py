"""Hyper-parameters: what a program builds its optimizers and schedulers with, told from what training made of it.

Beside the state of each, a snapshot holds its settings as they were when it was tracked, before anything was restored:
what is *built*. A setting that is built otherwise than at the snapshot was changed by the user, and where the user's
are to win (`override=`, a fork's `--set`) it replaces what is restored. One that a schedule has moved since keeps its
place in the schedule: with a learning rate ten times smaller, what was decayed to a half is a half of the new one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.optim import lr_scheduler

Built: TypeAlias = "list[dict[str, Any]] | dict[str, Any]"
"""Of an optimizer the settings of each parameter group, of a scheduler its state; what is no number or text is left
out. JSON values, but for NaN and infinities."""

Wins = Callable[[str], bool]
"""Whether the user's value of the setting of that name wins."""

_PARTS = "_schedulers"
_MOVED_WITH = ("", "initial_", "max_", "min_", "base_")
_BASES = ("base_lrs", "max_lrs")
_DERIVED = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", *_BASES)
_NONE = object()
_BY_POSITION = (
    lr_scheduler.LambdaLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.CyclicLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
)
"""Their `get_lr` follows from the position alone; that of others goes on from the learning rate before."""


@dataclass(frozen=True)
class Settings:
    """How an optimizer or scheduler was built at the snapshot, how it is built now, and which of that wins."""

    old: Built
    new: Built
    wins: Wins

    @property
    def changes(self) -> list[tuple[str, Any, Any]]:
        """What replaces the snapshot's, by name: what was built then and what is now."""
        return list(changes(self.old, self.new, self.wins))

    @property
    def lines(self) -> list[str]:
        """What replaces the snapshot's, for the user."""
        plain = [one for one in self.changes if one[0].rpartition(" ")[2] not in _DERIVED]
        return [f"{key} {now!r} instead of {was!r}" for key, was, now in plain]

    def knows(self, key: str) -> bool:
        """Whether it is known of every parameter group how this setting was built."""
        return all(key in group for group in self.old)

    def put(self, groups: Sequence[dict[str, Any]]) -> None:
        """Puts what is built otherwise into restored parameter groups."""
        for group, was, now in zip(groups, self.old, self.new, strict=False):
            for key, before, wanted in changes(was, now, self.wins):
                if key in group:
                    group[key] = _like(group[key], moved(_plain(group[key]), before, wanted))

    def merge(self, state: Any) -> Any:
        """A scheduler's saved state, with what is built otherwise."""
        return merged(state, self.old, self.new, self.wins)


def built_of(obj: object) -> Built | None:
    """The settings as they are now; None of what has none."""
    if isinstance(obj, torch.optim.Optimizer):
        return [_plain_items(group) for group in obj.param_groups]
    return _plain_items(obj.state_dict()) if isinstance(obj, lr_scheduler.LRScheduler) else None


def wins_of(override: Collection[str]) -> Wins:
    """Of an optimizer's settings those named, and what schedulers derive from them: `lr` and `initial_lr`."""
    names = {prefix + name for name in override for prefix in _MOVED_WITH}
    return lambda key: key in names


def wins_always(_key: str) -> bool:
    """Whatever is built otherwise."""
    return True


def wins_base(key: str) -> bool:
    """Of a scheduler's state, what it takes from its optimizer when it is made."""
    return key in _BASES


def changes(old: Any, new: Any, wins: Wins) -> Iterator[tuple[str, Any, Any]]:
    """What is built otherwise, by name: what it was and what it is."""
    if isinstance(old, list) and isinstance(new, list):
        for group, (was, now) in enumerate(zip(old, new, strict=False)):
            prefix = f"group {group} " if len(new) > 1 else ""
            yield from ((f"{prefix}{name}", *values) for name, *values in changes(was, now, wins))
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in new:
            if key == _PARTS:
                yield from changes(old.get(key), new[key], wins)
            elif wins(key) and key in old and old[key] != new[key]:
                yield key, old[key], new[key]


def moved(value: Any, before: Any, wanted: Any) -> Any:
    """What a restored setting becomes that was `before` when it was built, and is built as `wanted` now."""
    numbers = all(type(one) in (int, float) for one in (value, before, wanted))
    return value * (wanted / before) if numbers and value != before and before else wanted


def merged(state: Any, old: Any, new: Any, wins: Wins) -> Any:
    """A scheduler's saved state, or that of one within it, with what is built otherwise."""
    found = {**state, **{key: wanted for key, _, wanted in changes({**old, _PARTS: None}, new, wins)}}
    if _PARTS in found:
        parts = zip(state[_PARTS], old.get(_PARTS, ()), new.get(_PARTS, ()), strict=False)
        found[_PARTS] = [merged(*part, wins) for part in parts]
    return found


def settle(scheduler: lr_scheduler.LRScheduler) -> None:
    """Both are restored with a new base: what torch can tell exactly is put in place of what was scaled."""
    values = _scheduled(scheduler)
    groups = scheduler.optimizer.param_groups
    for group, value in zip(groups, values or (), strict=False):
        group["lr"] = _like(group["lr"], float(value))
    scheduler._last_lr = [_like(group["lr"], _plain(group["lr"])) for group in groups]


def _scheduled(scheduler: lr_scheduler.LRScheduler) -> Sequence[Any] | None:
    """The learning rates at a scheduler's position; None if they follow from those before."""
    if type(scheduler) is lr_scheduler.SequentialLR:
        part = bisect_right(scheduler._milestones, scheduler.last_epoch)
        return _scheduled(scheduler._schedulers[part])
    if type(scheduler) in _BY_POSITION:
        with lr_scheduler._enable_get_lr_call(scheduler):
            return list(scheduler.get_lr())
    own = type(scheduler).__module__ != lr_scheduler.__name__
    closed = None if own else getattr(scheduler, "_get_closed_form_lr", None)
    return None if closed is None else list(closed())


def _like(value: Any, wanted: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.full_like(value, wanted)
    return tuple(wanted) if isinstance(value, tuple) and isinstance(wanted, list) else wanted


def _plain_items(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _plain(value) for key, value in values.items() if key not in ("params", "_last_lr")}
    if _PARTS in values:
        found[_PARTS] = [_plain_items(part) for part in values[_PARTS]]
    return {key: value for key, value in found.items() if value is not _NONE}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return _NONE if any(item is _NONE for item in items) else items
    return value if value is None or type(value) in (bool, int, float, str) else _NONE
