"""Restore: from a part's tree and tensors back into the live objects, in place.

What comes out never shares memory with the fetched buffers or with another object's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

MapLocation: TypeAlias = "str | torch.device | Mapping[str, str] | None"


class TensorSource:
    """The fetched tensors of one part.

    Args:
        entries: the part's tensor table.
        buffers: index → writable bytes of that tensor, in logical row-major order. May lack what no tree asks for.
    """

    def __init__(self, entries: Sequence[Any], buffers: Mapping[int, Any]) -> None:
        raise NotImplementedError


def tensor_indices(tree: object) -> frozenset[int]:
    """The rows of the tensor table that an encoded tree refers to."""
    raise NotImplementedError


def decode_value(tree: object, source: TensorSource, *, path: str = "", map_location: MapLocation = None) -> Any:
    """The value of an encoded tree; tensors own their memory and are as tied among themselves as when captured.

    Args:
        tree: such as `part.tree["run"]["vars"]` or `part.tree["objects"]["model"]["state"]`.
        source: must hold `tensor_indices(tree)`.
        path: for messages.
        map_location: the device for tensors, or a mapping from saved to wanted device; None is the saved device.

    Raises:
        MismatchError: a saved device is not here and `map_location` does not say what to do.
        Corrupt: the tree and the tensor table do not fit.
    """
    raise NotImplementedError


def restore_object(
    name: str,
    obj: object,
    saved: Mapping[str, Any],
    source: TensorSource,
    *,
    strict: bool = True,
    map_location: MapLocation = None,
    override: Sequence[str] = (),
) -> tuple[str, ...]:
    """Loads a saved state into a live object.

    Args:
        name: under which it is tracked.
        obj: changed in place.
        saved: `part.tree["objects"][name]`: its `kind` and encoded `state`.
        source: must hold `tensor_indices(saved)`.
        strict: False skips keys and shapes of a module that do not fit.
        map_location: where tensors go that are not copied into existing ones.
        override: keys whose live value wins: of an optimizer's `param_groups`, or top-level ones of another state.

    Returns:
        A line for each thing that was skipped; empty when everything fitted.

    Raises:
        MismatchError: kind, keys, shapes or numbers of parameters do not fit; nothing was loaded into a module or
            optimizer then.
    """
    raise NotImplementedError
