"""What a run tracks: the user's objects by name, restored when they are named and captured at every snapshot."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from spotckpt.errors import Corrupt, LimitExceeded, MismatchError, NotFound, SpotckptError, UsageError
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.tree import decode
from spotckpt.training.capture import check_object
from spotckpt.training.fetching import Saved
from spotckpt.training.filling import Filling
from spotckpt.training.grads import GradWatch, restore_gradients
from spotckpt.training.hyper import Built, Settings, Wins, built_of, settle, wins_always, wins_base, wins_of
from spotckpt.training.objects import kind_of
from spotckpt.training.restore import Load, MapLocation, check_map_location, check_override, prepare

RESERVED = ("vars", "run")


@dataclass(frozen=True)
class _Wish:
    """An object, and how it is to be restored."""

    name: str
    obj: object
    strict: bool
    map_location: MapLocation
    override: Sequence[str]
    optional: Collection[str]
    built: Built | None


class Tracked:
    """The objects, in the order in which they were named.

    Args:
        saved: the snapshot that the run goes on from.
        initial: the snapshot of another run whose weights an empty run starts from.
        say: told what was skipped and what looks wrong.
        fall_back: given what is wrong with the snapshot, finds the one to go on from instead.
        check: called again and again while bytes are read; what it raises ends that.
    """

    def __init__(
        self,
        saved: Saved | None,
        initial: Saved | None,
        say: Callable[[str], None],
        *,
        fall_back: Callable[[SpotckptError], Saved],
        check: Callable[[], None],
    ) -> None:
        self.objects: dict[str, object] = {}
        self.built: dict[str, Built] = {}
        self.grads = GradWatch()
        self.has_optimizer = False
        self._saved = saved
        self._initial = initial
        self._dropped: set[str] = set()
        self._say = say
        self._fall_back = fall_back
        self._check = check
        self._wishes: list[_Wish] = []
        self._anew = False
        # names of objects and places in memory: changed by the snapshot gone on from, and by damaged ones before it
        self._changed: set[object] = set()
        self._spoiled: set[object] = set()

    def add(
        self,
        objects: Mapping[str, object],
        *,
        strict: bool,
        map_location: MapLocation,
        override: Mapping[str, Sequence[str]],
        optional: Collection[str],
        drop: Collection[str],
    ) -> None:
        """Takes the objects up and restores them in place; what does not fit changes none of them.

        If the snapshot turns out to be damaged, all objects so far are restored from the next one.
        """
        keys = {name: as_names(f"override of {name}", wanted) for name, wanted in as_mapping(override).items()}
        optional, drop = as_names("optional", optional), as_names("drop", drop)
        check_map_location(map_location)
        self._check_names(objects, keys, optional)
        self._dropped |= set(drop)
        for name, obj in objects.items():
            warning = check_object(name, obj)
            if warning:
                self._say(f"warning: {warning}")
            check_override(name, obj, keys.get(name, ()))
        new = [
            _Wish(name, obj, strict, map_location, keys.get(name, ()), optional, built_of(obj))
            for name, obj in objects.items()
        ]
        self._restore(new)
        self.built |= {wish.name: wish.built for wish in new if wish.built is not None}
        for name, obj in objects.items():
            self.objects[name] = obj
            if isinstance(obj, torch.optim.Optimizer):
                self.grads.watch(name, obj)
                self.has_optimizer = True

    def _restore(self, new: Sequence[_Wish]) -> None:
        """First all is checked, then read, then loaded."""
        wishes = new
        while (source := self._saved or self._initial) is not None:
            filling, loads = self._plan(source, wishes)
            self._check_covered(source, filling.places | loads.keys())
            try:
                source.read(filling, check=self._check)
                for load in loads.values():
                    for line in load():
                        self._say(f"warning: {line}")
                self._settle(source, wishes)
                break
            except (Corrupt, LimitExceeded, NotFound) as error:
                if self._saved is None:
                    raise
                self._spoiled |= self._changed | filling.places | loads.keys()
                self._saved = self._fall_back(error)
                wishes = [*self._wishes, *new]
        self._wishes += new
        if source is not None:
            self._changed |= filling.places | loads.keys()

    def _plan(self, source: Saved, wishes: Sequence[_Wish]) -> tuple[Filling, dict[str, Load]]:
        """Which tensors are to be read, and by name what to do when they are there. Nothing is changed yet."""
        for wish in wishes:
            self._check_present(wish, wishes)
        filling, loads = Filling(source.part), {}
        for wish in wishes:
            if self._saved is not None and wish.name in self._dropped and wish.name in self._saved.objects:
                self._say(
                    f"warning: {wish.name} starts anew, as drop= asks for: take it out once there is a snapshot of it"
                )
            elif self._is_in(source, wish):
                loads[wish.name] = prepare(
                    wish.name,
                    wish.obj,
                    source.objects[wish.name],
                    filling,
                    strict=wish.strict,
                    map_location=wish.map_location,
                    override=wish.override,
                    settings=self._settings(source, wish, wishes),
                )
        return filling, loads

    def _settings(self, source: Saved, wish: _Wish, wishes: Sequence[_Wish]) -> Settings | None:
        """Which settings win over the snapshot's; None if none do, or it is not known how it was built then."""
        saved = source.objects.get(wish.name, {}).get("built")
        if source is not self._saved or saved is None or wish.built is None:
            return None
        wins = self._wins(source, wish, [*self._wishes, *wishes])
        return None if wins is None else Settings(decode(saved), wish.built, wins)

    def _wins(self, source: Saved, wish: _Wish, wishes: Sequence[_Wish]) -> Wins | None:
        if source.manifest.overrides:
            return wins_always
        if isinstance(wish.obj, torch.optim.Optimizer):
            return wins_of(wish.override) if wish.override else None
        driven = getattr(wish.obj, "optimizer", None)
        overridden = any(other.obj is driven and "lr" in other.override for other in wishes)
        return wins_base if overridden else None

    def _settle(self, source: Saved, wishes: Sequence[_Wish]) -> None:
        """All is restored: says which settings are the user's, and puts schedules right."""
        for wish in wishes:
            settings = self._settings(source, wish, wishes)
            if settings and settings.lines:
                self._say(f"{wish.name} goes on with {', '.join(settings.lines)}")
            self._anew |= bool(settings and settings.changes)
        every = list({wish.name: wish for wish in (*self._wishes, *wishes)}.values())
        schedulers = [(wish, wish.obj) for wish in every if isinstance(wish.obj, LRScheduler)]
        driven = [id(scheduler.optimizer) for _, scheduler in schedulers]
        for wish, scheduler in schedulers:
            settings = self._settings(source, wish, every)
            if settings and settings.changes and driven.count(id(scheduler.optimizer)) == 1:
                settle(scheduler)

    def _check_covered(self, source: Saved, changes: Set[object]) -> None:
        """Nothing of a damaged snapshot may stay behind in an object because the one before does not hold it."""
        if self._spoiled <= changes:
            return
        names = sorted(name for name in self._spoiled - changes if isinstance(name, str))
        raise MismatchError(
            f"{', '.join(names) or 'some tensors'} had been restored from a snapshot that is damaged, and {source.id} "
            "does not hold them",
            hint=f"start again from that one: append @{source.id} to the address",
        )

    def check_complete(self) -> None:
        """Nothing of the snapshot may be lost by having been forgotten.

        Raises:
            MismatchError: it holds an object that is neither tracked nor dropped.
        """
        if self._saved is None:
            return
        missing = sorted(set(self._saved.objects) - set(self.objects) - self._dropped)
        if missing:
            raise MismatchError(
                f"snapshot {self._saved.id} holds {', '.join(missing)}, which the run does not track",
                hint=f"track it, or leave it behind on purpose: run.track(..., drop={missing!r})",
            )
        self._check_overrides(self._saved.manifest)

    def _check_overrides(self, manifest: Manifest) -> None:
        """What a fork sets must not be lost by a program that builds its optimizers without it."""
        settings = {key for built in self.built.values() if isinstance(built, list) for group in built for key in group}
        for name, value in manifest.overrides.items():
            if name in settings and not self._anew and value != manifest.arguments.get(name):
                raise MismatchError(
                    f"this fork sets {name}={value!r}, and every optimizer is built as it was before",
                    hint=f"build it with the argument {name}, which is run.arguments[{name!r}] without the decorator",
                )

    def restore_gradients(self, gradients: Mapping[str, Mapping[int, torch.Tensor]]) -> None:
        """Gives back the gradients of an accumulation window that the snapshot fell into."""
        for name, of_optimizer in gradients.items():
            optimizer = self.objects.get(name)
            if name not in self._dropped and isinstance(optimizer, torch.optim.Optimizer):
                restore_gradients(name, optimizer, of_optimizer)

    @property
    def has_stepped(self) -> bool:
        """Whether optimizer state can exist by now: one has stepped, or none is tracked."""
        return not self.has_optimizer or self.grads.steps_taken > 0

    def forget_snapshot(self) -> None:
        """What is tracked later is new."""
        if self._saved is not None:
            self._saved = self._saved.without_own()
        self._initial = None
        self._wishes.clear()

    def close(self) -> None:
        """Removes the hooks from the optimizers."""
        self.grads.close()

    def _check_names(
        self, objects: Mapping[str, object], override: Mapping[str, Sequence[str]], optional: Collection[str]
    ) -> None:
        for name in objects:
            if name in RESERVED or name in self.objects:
                why = "that name is spotckpt's own" if name in RESERVED else "it is tracked already"
                raise UsageError(f"{name} cannot be tracked: {why}", hint="choose another name")
        for unknown in sorted((set(override) | set(optional)) - set(objects) - set(self.objects)):
            raise UsageError(f"track: {unknown} is not tracked", hint="override= and optional= take names of objects")

    def _check_present(self, wish: _Wish, wishes: Sequence[_Wish]) -> None:
        name = wish.name
        source = self._saved or (self._initial if isinstance(wish.obj, torch.nn.Module) else None)
        if source is None or name in source.objects or name in wish.optional:
            return
        if not source.objects:
            raise MismatchError(
                f"{name} is not in snapshot {source.id}, which holds no objects at all",
                hint="it was taken by a program that tracked nothing: name another one, or start afresh with @start",
            )
        taken = {*(one.name for one in wishes), *self.objects, *self._dropped}
        unused = {other: saved for other, saved in source.objects.items() if other not in taken}
        renamed = self._renamed(name, wish.obj, unused)
        raise MismatchError(
            f"{name} is not in snapshot {source.id}, which holds {', '.join(sorted(source.objects))}",
            hint=f"{renamed}if it is new, say so: run.track(..., optional=[{name!r}])",
        )

    def _renamed(self, name: str, obj: object, unused: Mapping[str, Any]) -> str:
        """What of the snapshot it may have been: of that kind the one most like it by name, or the only one left."""
        kind = kind_of(name, obj)
        alike = sorted(other for other, saved in unused.items() if saved.get("kind") == kind)
        similar = difflib.get_close_matches(name, alike, 1) or (alike if len(alike) == 1 else [])
        return f"if {similar[0]} was renamed, track it as {similar[0]}=...; " if similar else ""

    def _is_in(self, source: Saved, wish: _Wish) -> bool:
        """Whether it is restored from there; of another run's snapshot only weights are."""
        return wish.name in source.objects and (source is self._saved or isinstance(wish.obj, torch.nn.Module))


def as_names(what: str, given: object) -> tuple[str, ...]:
    """Names as they were given; a plain text is one name.

    Raises:
        UsageError: they are something else.
    """
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Collection) else (None,)
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"track: {what}={given!r:.60} are no names", hint='as in ["optimizer"]')
    return names


def as_mapping(override: object) -> Mapping[Any, Any]:
    """The `override` of `track`.

    Raises:
        UsageError: it is no mapping.
    """
    if not isinstance(override, Mapping):
        raise UsageError(f"track: override={override!r:.60} is no mapping", hint='as in {"optimizer": ["lr"]}')
    return override
