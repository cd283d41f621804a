"""Values as `torch.load(weights_only=True)` takes them, and back, exactly.

What it reads stands for itself. Everything else that a snapshot can hold (numpy's arrays and scalars, bytes, sets,
enums, ...) becomes a dictionary with one `"$..."` tag, as docs/format.md lists them; where that says an index into the
tensor table, the tensor itself stands here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from spotckpt.errors import Corrupt, EncodeError
from spotckpt.moving.contents import as_tensor
from spotckpt.snapshot.tree import MAX_DEPTH, decode, encode, join
from spotckpt.training.leaves import decode_leaf, encode_leaf
from spotckpt.training.tensors import PLAIN_TYPES, Storable, why_not_storable

_AS_IS = frozenset({type(None), bool, int, float, str, torch.Size, torch.dtype})
_KEYS = frozenset({type(None), bool, int, float, str})
_WITH_TENSORS = ("$tensor", "$array")


def to_plain(value: Any, path: str, depth: int = 0) -> Any:
    """The value for `torch.save`; tensors are the same objects.

    Raises:
        EncodeError: a value that a snapshot cannot hold, by its path.
    """
    if depth > MAX_DEPTH:
        raise EncodeError(f"{path:.200}: nested deeper than {MAX_DEPTH}", hint="store something flatter")
    kind = type(value)
    if kind in _AS_IS or (kind in PLAIN_TYPES and not why_not_storable(value)):
        return value
    if kind in (list, tuple):
        return kind(to_plain(one, f"{path}[{index}]", depth + 1) for index, one in enumerate(value))
    if kind in (dict, OrderedDict):
        pairs = [(key, to_plain(one, join(path, key), depth + 1)) for key, one in value.items()]
        return _mapping(value, pairs)
    return _tagged(value, path)


def _mapping(value: Any, pairs: list[tuple[Any, Any]]) -> Any:
    if any(type(key) not in _KEYS or (type(key) is str and key.startswith("$")) for key, _ in pairs):
        tag = "$dict" if type(value) is dict else "$ordered"
        return {tag: [[_tagged(key, "key"), one] for key, one in pairs]}
    if type(value) is dict:
        return dict(pairs)
    made = OrderedDict(pairs)
    vars(made).update(vars(value))  # the versions that a module's state_dict keeps
    return made


def _tagged(value: Any, path: str) -> Any:
    tensors: list[Storable] = []

    def add(one: Storable, where: str) -> int:
        tensors.append(one)
        return len(tensors) - 1

    node = encode(value, path=path, leaf=lambda one, where: encode_leaf(one, where, add), array=add)
    return _with_rows(node, lambda row: as_tensor(tensors[row]))


def _with_rows(node: Any, replaced: Callable[[Any], Any]) -> Any:
    """The tree with what stands behind `$tensor` and `$array` replaced."""
    if isinstance(node, list):
        return [_with_rows(one, replaced) for one in node]
    if not isinstance(node, dict):
        return node
    return {key: replaced(one) if key in _WITH_TENSORS else _with_rows(one, replaced) for key, one in node.items()}


def from_plain(value: Any, depth: int = 0) -> Any:
    """The inverse of `to_plain`.

    Raises:
        Corrupt: a tag that is unknown or malformed.
    """
    if depth > 2 * MAX_DEPTH:
        raise Corrupt(f"a value is nested deeper than {MAX_DEPTH}", hint="the file was not written by us")
    if type(value) in (list, tuple):
        return type(value)(from_plain(one, depth + 1) for one in value)
    if not isinstance(value, dict):
        return value
    tags = [key for key in value if type(key) is str and key.startswith("$")]
    if tags in (["$dict"], ["$ordered"]):
        return _from_pairs(tags[0], value[tags[0]], depth)
    if tags:
        return _untagged(value)
    for key, one in value.items():
        value[key] = from_plain(one, depth + 1)
    return value


def _from_pairs(tag: str, pairs: Any, depth: int) -> Any:
    try:
        found = [(_untagged(key), from_plain(one, depth + 1)) for key, one in pairs]
        return dict(found) if tag == "$dict" else OrderedDict(found)
    except (TypeError, ValueError) as error:
        raise Corrupt(f"{tag} is malformed: {error}", hint="the file was changed by another program") from error


def _untagged(node: Any) -> Any:
    tensors: list[torch.Tensor] = []

    def row(one: Any) -> int:
        if not isinstance(one, torch.Tensor):
            raise Corrupt("a tag without its tensor", hint="the file was changed by another program")
        tensors.append(one)
        return len(tensors) - 1

    tree = _with_rows(node, row)
    return decode(
        tree,
        leaf=lambda leaf: decode_leaf(leaf, lambda at, _: tensors[at]),
        array=lambda at: tensors[at].contiguous().numpy(),
    )
