"""Capture: the state of every tracked object as a tree and a list of tensors, without copying.

captured = capture({"model": model, "optimizer": optimizer}, {"vars": ..., "position": position.state()})
plan = layout(captured.specs)
Copy(captured, slot_memory, plan, pinned).run(range(len(captured.tensors)))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from spotckpt.snapshot.pack import TensorSpec, kinds_of
from spotckpt.snapshot.tree import encode
from spotckpt.training.leaves import encode_leaf
from spotckpt.training.objects import kind_of, state_of, why_suspicious
from spotckpt.training.tensors import Storable, dtype_name, memory_strides

_PLAIN_STEPS = re.compile(r"(?:\.\w+|\[\w+\])*")
_AS_SLASHES = str.maketrans({".": "/", "[": "/", "]": None})
_STEP = re.compile(r"\.(\w+)|\[(.*?)\](?=[.\[]|$)", re.DOTALL)


class Capture:
    """What a boundary's state is made of; the tensors are the live ones.

    Attributes:
        tree: `{"objects": {name: {"kind", "state"}}, "run": {...}}`, encoded (JSON-able).
        tensors: row i belongs to `{"$tensor": i}` or `{"$array": i}` in the tree.
        names: unique and readable, as in `model/layer1.weight`, `optimizer/state/3/exp_avg`, `run/vars/ema`.
    """

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {"objects": {}, "run": {}}
        self.tensors: list[Storable] = []
        self.names: list[str] = []
        self._rows: dict[int, list[int]] = {}
        self._taken: dict[str, int] = {}

    @cached_property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Of each tensor, for `snapshot.pack.layout` and for a `Staged`; to be read when all is captured."""
        return tuple(
            TensorSpec(name, dtype_name(value), tuple(value.shape), memory_strides(value))
            for name, value in zip(self.names, self.tensors, strict=True)
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(kind.size_bytes for kind in kinds_of(self.specs))

    def encode(self, value: object, *, path: str, name: str) -> Any:
        """Encodes one value; its tensors join the table under names that start with `name`.

        Args:
            value: the state.
            path: what errors call it.
            name: what tensors are named after, as in `model` or `run/vars`.

        Raises:
            EncodeError: what cannot be held, by its path.
        """
        keys = _top_level_keys(value)

        def tensor_name(one: object, where: str) -> str:
            return f"{name}/{keys[id(one)]}" if id(one) in keys else name + _slashes(where.removeprefix(path))

        def add(one: Storable, where: str) -> int:
            return self._add(one, tensor_name(one, where))

        return encode(value, path=path, leaf=lambda one, where: encode_leaf(one, where, add), array=add)

    def _add(self, value: Storable, name: str) -> int:
        if not isinstance(value, np.ndarray) and value.requires_grad:
            value = value.detach()
        rows = self._rows.setdefault(_address(value), [])
        for row in rows if value.nbytes else ():
            if _identity(self.tensors[row]) == _identity(value):
                return row
        rows.append(len(self.tensors))
        self.tensors.append(value)
        self.names.append(self._unique(name))
        return rows[-1]

    def _unique(self, name: str) -> str:
        self._taken[name] = self._taken.get(name, 0) + 1
        return name if self._taken[name] == 1 else self._unique(f"{name}#{self._taken[name]}")


def _top_level_keys(value: object) -> dict[int, str]:
    # A module's keys contain dots and may be long: they are better names than paths made of them.
    if not isinstance(value, Mapping):
        return {}
    return {id(one): key for key, one in value.items() if type(key) is str and isinstance(one, torch.Tensor)}


@lru_cache(maxsize=1 << 16)  # the paths of one snapshot are those of the next
def _slashes(path: str) -> str:
    if _PLAIN_STEPS.fullmatch(path):
        return path.translate(_AS_SLASHES)
    steps = (attribute or index.strip("'\"") for attribute, index in _STEP.findall(path))
    return "".join(f"/{step}" for step in steps)


def _address(value: Storable) -> int:
    return value.ctypes.data if isinstance(value, np.ndarray) else value.data_ptr()


def _identity(value: Storable) -> tuple[object, ...]:
    """Equal for tensors at one address that see it alike. The table keeps them alive, so no address recurs."""
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.strides, value.dtype.str)
    place = (value.device, value.storage_offset(), tuple(value.shape), value.stride())
    return (*place, value.dtype, value.is_conj(), value.is_neg())


def capture(
    objects: Mapping[str, object], extra: Mapping[str, object], built: Mapping[str, object] | None = None
) -> Capture:
    """Collects the state of tracked objects and of the run, copying nothing.

    Args:
        objects: name → tracked object; their `state_dict()` is called here, and what it raises comes out unchanged.
        built: name → the settings that an optimizer or scheduler was built with.
        extra: the run's own state, any encodable values; it becomes `tree["run"]`.

    Raises:
        EncodeError: a value that a snapshot cannot hold, named by its path.
        UsageError: an object that cannot be tracked.
    """
    captured = Capture()
    for name, obj in objects.items():
        kind = kind_of(name, obj)
        state = captured.encode(state_of(kind, obj), path=name, name=name)
        captured.tree["objects"][name] = {"kind": kind, "state": state}
        if built and name in built:
            captured.tree["objects"][name]["built"] = encode(built[name], path=name)
    for name, value in extra.items():
        captured.tree["run"][name] = captured.encode(value, path=name, name=f"run/{name}")
    return captured


def check_encodable(value: object, *, path: str) -> None:
    """Encodes the value and throws the result away.

    Raises:
        EncodeError: as `capture` would raise for it; the message starts with the path.
    """
    Capture().encode(value, path=path, name="")


def check_object(name: str, obj: object) -> str | None:
    """Whether this object can be tracked: kind and state are tried at once, not at the first snapshot.

    Returns:
        A warning when the state is empty though the object is not stateless by nature (torchmetrics' `state_dict()` is
        empty by default); None otherwise.

    Raises:
        EncodeError: its state holds something that a snapshot cannot.
        UsageError: it cannot be restored in place.
    """
    kind = kind_of(name, obj)
    state = state_of(kind, obj)
    check_encodable(state, path=name)
    return why_suspicious(name, kind, obj, state) or None
