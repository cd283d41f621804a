"""Torch's values in a state tree: the tags that `snapshot.tree` leaves to the trainer.

{"$tensor": i}                    row i of the tensor table; with "device" unless it was on the CPU, "parameter": true
                                  for a torch.nn.Parameter, "requires_grad": true where it differs from the default
{"$torch.dtype": "bfloat16"}
{"$torch.device": "cuda:0"}
{"$torch.Size": [2, 3]}
{"$uninitialized": "parameter"}   of a lazy module before its first forward; or "buffer"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from spotckpt.errors import Corrupt, EncodeError
from spotckpt.training.tensors import PLAIN_TYPES, why_not_storable

_DTYPE = re.compile(r"[a-z0-9_]+")


def encode_leaf(value: Any, path: str, add: Callable[[torch.Tensor, str], int]) -> dict[str, Any] | None:
    """A tagged object for a value of torch; None for any other.

    Args:
        value: what the tree codec does not know.
        path: for errors.
        add: puts a tensor into the table and returns its row.

    Raises:
        EncodeError: a tensor that cannot be stored.
    """
    if type(value) in PLAIN_TYPES:  # first: most values are, and torch's isinstance is slow
        return _tensor_node(value, path, add)
    if isinstance(value, (UninitializedParameter, UninitializedBuffer)):
        return {"$uninitialized": "parameter" if isinstance(value, UninitializedParameter) else "buffer"}
    if isinstance(value, torch.Tensor):
        return _tensor_node(value, path, add)
    if type(value) is torch.Size:
        return {"$torch.Size": list(value)}
    if type(value) is torch.dtype:
        return {"$torch.dtype": str(value).removeprefix("torch.")}
    return {"$torch.device": str(value)} if type(value) is torch.device else None


def _tensor_node(value: torch.Tensor, path: str, add: Callable[[torch.Tensor, str], int]) -> dict[str, Any]:
    if reason := why_not_storable(value):
        hint = "store value.detach() or value.item()" if "autograd" in reason else "store a plain dense tensor"
        raise EncodeError(f"{path}: {reason}", hint=hint)
    node: dict[str, Any] = {"$tensor": add(value, path)}
    is_parameter = type(value) is torch.nn.Parameter
    if not value.is_cpu:
        node["device"] = str(value.device)
    if is_parameter:
        node["parameter"] = True
    if value.requires_grad != is_parameter:
        node["requires_grad"] = value.requires_grad
    return node


def decode_leaf(node: dict[str, Any], tensor: Callable[[int, str], torch.Tensor]) -> Any:
    """The inverse of `encode_leaf`.

    Args:
        node: the tagged object.
        tensor: (row, saved device) → the tensor.

    Raises:
        Corrupt: an unknown or malformed tag.
    """
    try:
        if "$tensor" in node:
            return _tensor(node, tensor)
        if "$torch.Size" in node:
            return torch.Size(node["$torch.Size"])
        if "$torch.device" in node:
            return torch.device(node["$torch.device"])
        if "$torch.dtype" in node:
            return _dtype(node["$torch.dtype"])
        if "$uninitialized" in node:
            return {"parameter": UninitializedParameter, "buffer": UninitializedBuffer}[node["$uninitialized"]]()
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise Corrupt(f"state tree: {sorted(node)} is malformed: {error}", hint="use another snapshot") from error
    raise Corrupt(f"state tree: tag {sorted(node)} is not known", hint="a newer spotckpt may read it")


def _tensor(node: dict[str, Any], tensor: Callable[[int, str], torch.Tensor]) -> torch.Tensor:
    value = tensor(node["$tensor"], node.get("device", "cpu"))
    is_parameter = node.get("parameter", False)
    requires_grad = node.get("requires_grad", is_parameter)
    if is_parameter:
        return torch.nn.Parameter(value, requires_grad=requires_grad)
    return value.requires_grad_() if requires_grad and not value.requires_grad else value


def _dtype(text: str) -> torch.dtype:
    found = getattr(torch, text, None) if _DTYPE.fullmatch(text) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{text!r:.40} is not a dtype")
    return found
