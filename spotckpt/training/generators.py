"""The generators that a position depends on: global, watched by name, and found inside loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

from spotckpt.errors import MismatchError
from spotckpt.training.rng import (
    GENERATOR_TYPES,
    Generator,
    capture_generator,
    capture_rng,
    restore_generator,
    restore_rng,
)

_MAX_DEPTH = 5
_MAX_LIST = 64
_OPAQUE = (torch.nn.Module, torch.Tensor, FunctionType, MethodType, ModuleType, type, str, bytes, int, float)


def find_generators(loader: object) -> dict[str, Generator]:
    """Generators held by a loader, its sampler, its dataset and their transforms, by attribute path.

    A `DataLoader(generator=g)` shuffles with `g`, and samplers and datasets may hold one of their own. Reads instance
    attributes only: no property is called. A generator that is reachable twice is named once.
    """
    found: dict[str, Generator] = {}
    seen: set[int] = set()
    for path, generator in _walk(loader, "", 0, seen):
        found[path] = generator
    return found


def _walk(value: object, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Generator]]:
    if id(value) in seen or depth > _MAX_DEPTH or isinstance(value, _OPAQUE):
        return
    seen.add(id(value))
    if isinstance(value, GENERATOR_TYPES):
        yield path, value
    elif isinstance(value, (list, tuple)):
        if len(value) <= _MAX_LIST:
            for index, item in enumerate(value):
                yield from _walk(item, f"{path}[{index}]", depth + 1, seen)
    else:
        for name, item in list(getattr(value, "__dict__", {}).items()):
            # A DataLoader's running iterator is there only sometimes, and paths must be the same in each process.
            if name != "_iterator":
                yield from _walk(item, f"{path}.{name}" if path else name, depth + 1, seen)


class Generators:
    """The states of all generators, at the start of a loop and at a snapshot.

    Loaders are known by their slot, the place of their loop in the program, as no name of theirs outlives the process.

    Args:
        say: told what the loaded state holds and this process lacks.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._watched: dict[str, Generator] = {}
        self._slots: dict[str, dict[str, Generator]] = {}
        self._loaded: Mapping[str, Any] | None = None
        self._unseen: dict[str, dict[str, Any]] = {}
        self._early: dict[str, dict[str, Any]] = {}
        self._settled: dict[int, Generator] = {}

    def watch(self, name: str, generator: Generator) -> None:
        """Adds a generator by the name under which it is tracked."""
        self._watched[name] = generator
        self._settled[id(generator)] = generator

    def sight(self, slot: str, loader: object) -> None:
        """Finds the loader's generators; what is first seen after `arrive` gets its loaded state here."""
        self._slots[slot] = find_generators(loader)
        states = self._unseen.pop(slot, {})
        if self._loaded is not None:
            self._early.setdefault(slot, {}).update(states)
            return
        for path, generator in self._slots[slot].items():
            # A generator shared with a loader that was seen before has its state, and may have moved on since.
            if path in states and id(generator) not in self._settled:
                _put(f"{slot}/{path}", generator, states[path])
            self._settled[id(generator)] = generator

    def start(self, slot: str) -> dict[str, Any]:
        """The states that the order of this slot's loop depends on."""
        return {
            "rng": capture_rng(),
            "watched": {name: capture_generator(one) for name, one in self._watched.items()},
            "loader": {path: capture_generator(one) for path, one in self._slots[slot].items()},
        }

    def set_start(self, slot: str, start: Mapping[str, Any]) -> None:
        """Puts what `start` returned back."""
        restore_rng(start["rng"], self._say)
        self._put_all("track", self._watched, start["watched"])
        self._put_all(slot, self._slots[slot], start["loader"])

    def state(self) -> dict[str, Any]:
        """All states now; a generator shared by several loaders is stored once."""
        table: list[Any] = []
        rows: dict[int, int] = {}
        slots: dict[str, dict[str, int]] = {}
        for slot, found in self._slots.items():
            slots[slot] = {path: _row(one, rows, table) for path, one in found.items()}
        for slot, states in self._unseen.items():
            slots[slot] = {path: _append(table, state) for path, state in states.items()}
        watched = {name: capture_generator(one) for name, one in self._watched.items()}
        return {"rng": capture_rng(), "watched": watched, "table": table, "slots": slots}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over a decoded `state()`; nothing is set before `arrive`."""
        self._loaded = state
        self._unseen = {
            slot: {path: state["table"][row] for path, row in paths.items()} for slot, paths in state["slots"].items()
        }

    def arrive(self) -> None:
        """Sets the global generators, the watched ones and those of all loaders seen so far to the loaded state."""
        if self._loaded is None:
            return
        loaded, self._loaded = self._loaded, None
        restore_rng(loaded["rng"], self._say)
        self._put_all("track", self._watched, loaded["watched"])
        for slot, states in self._early.items():
            self._put_all(slot, self._slots[slot], states)
        for found in self._slots.values():
            self._settled.update({id(one): one for one in found.values()})

    def _put_all(self, owner: str, generators: Mapping[str, Generator], states: Mapping[str, Any]) -> None:
        for path, state in states.items():
            if path in generators:
                _put(f"{owner}/{path}", generators[path], state)
            else:
                self._say(f"the snapshot holds a state for the generator {owner}/{path}, and there is none here now")


def _put(path: str, generator: Generator, state: Mapping[str, Any]) -> None:
    try:
        restore_generator(generator, state)
    except (ValueError, RuntimeError) as error:
        raise MismatchError(f"generator {path}: {error}", hint="use the same kind of generator as before") from error


def _row(generator: Generator, rows: dict[int, int], table: list[Any]) -> int:
    if id(generator) not in rows:
        rows[id(generator)] = _append(table, capture_generator(generator))
    return rows[id(generator)]


def _append(table: list[Any], state: Any) -> int:
    table.append(state)
    return len(table) - 1
