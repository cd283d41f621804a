"""Capture: the state of every tracked object as a tree and a list of tensors, without copying; and the one copy.

captured = capture({"model": model, "optimizer": optimizer}, {"vars": ..., "position": position.state()})
plan = layout(captured.specs)
copy_into(captured, slot_memory, plan)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Capture:
    """What a boundary's state is made of; the tensors are the live ones.

    Attributes:
        tree: `{"objects": {name: {"kind", "state"}}, "run": {...}}`, encoded (JSON-able).
        tensors: row i belongs to `{"$tensor": i}` or `{"$array": i}` in the tree.
        names: unique and readable, as in `model/layer1.weight`, `optimizer/state/3/exp_avg`, `run/vars/ema`.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    tensors: list[torch.Tensor | np.ndarray[Any, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def specs(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, logical shape) of each tensor, for `snapshot.pack.layout`."""
        raise NotImplementedError

    @property
    def strides(self) -> list[tuple[int, ...] | None]:
        """Of each tensor, in elements: what a restore lays it out with; None is contiguous."""
        raise NotImplementedError

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        raise NotImplementedError


def capture(objects: Mapping[str, object], extra: Mapping[str, object]) -> Capture:
    """Collects the state of tracked objects and of the run, copying nothing.

    Args:
        objects: name → tracked object; their `state_dict()` is called here, and what it raises comes out unchanged.
        extra: the run's own state, any encodable values; it becomes `tree["run"]`.

    Raises:
        EncodeError: a value that a snapshot cannot hold, named by its path.
        UsageError: an object that cannot be tracked.
    """
    raise NotImplementedError


def check_encodable(value: object, *, path: str) -> None:
    """Encodes the value and throws the result away.

    Raises:
        EncodeError: as `capture` would raise for it; the message starts with the path.
    """
    raise NotImplementedError


def check_object(name: str, obj: object) -> str | None:
    """Whether this object can be tracked: kind and state are tried at once, not at the first snapshot.

    Returns:
        A warning when the state is empty though the object is not stateless by nature (torchmetrics' `state_dict()` is
        empty by default); None otherwise.

    Raises:
        EncodeError: its state holds something that a snapshot cannot.
        UsageError: it cannot be restored in place.
    """
    raise NotImplementedError


def copy_into(captured: Capture, buffer: Any, layout: Any) -> None:
    """Writes every tensor to its place in the data section; returns when all bytes are there.

    Args:
        captured: from `capture`, at the same boundary: the tensors are read now.
        buffer: writable, at least `layout.data_bytes` long; the data section of a slot.
        layout: from `snapshot.pack.layout(captured.specs)`.
    """
    raise NotImplementedError
