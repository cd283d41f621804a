"""Restore: from a part's tree and tensors back into the live objects, in place.

What comes out never shares memory with the fetched buffers or with another object's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from spotckpt.errors import Corrupt, MismatchError, UsageError
from spotckpt.snapshot.part import TensorEntry
from spotckpt.snapshot.tree import decode
from spotckpt.training import into_module, into_optimizer
from spotckpt.training.leaves import decode_leaf
from spotckpt.training.objects import kind_of, with_article
from spotckpt.training.rng import restore_generator
from spotckpt.training.tensors import own_array, own_tensor, tensor_view

_WITH_KEYS = ("stateful", "dict")

MapLocation: TypeAlias = "str | torch.device | Mapping[str, str] | None"


class TensorSource:
    """The fetched tensors of one part.

    Args:
        entries: the part's tensor table.
        buffers: index → writable bytes of that tensor, in logical row-major order. May lack what no tree asks for.
    """

    def __init__(self, entries: Sequence[TensorEntry], buffers: Mapping[int, Any]) -> None:
        self._entries = entries
        self._buffers = buffers

    def fetched(self, index: object) -> tuple[Any, TensorEntry]:
        """The bytes of a row and what they are.

        Raises:
            Corrupt: the table has no such row.
        """
        if type(index) is not int or not 0 <= index < len(self._entries):
            raise Corrupt(f"state tree: there is no tensor {index!r:.40}", hint="use another snapshot")
        assert index in self._buffers, f"tensor {index} was not fetched"
        return self._buffers[index], self._entries[index]


def tensor_indices(tree: object) -> frozenset[int]:
    """The rows of the tensor table that an encoded tree refers to."""
    rows = (node.get(tag) for node in _nodes(tree) for tag in ("$tensor", "$array"))
    return frozenset(row for row in rows if type(row) is int)


def _saved_devices(tree: object) -> set[str]:
    return {str(node.get("device", "cpu")) for node in _nodes(tree) if "$tensor" in node}


def _nodes(tree: object) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in a tree, in no order."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, Mapping):
            yield node
            pending.extend(node.values())
        elif isinstance(node, (list, tuple)):
            pending.extend(node)


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
    devices = {saved: _device(saved, map_location, path) for saved in _saved_devices(tree)}
    made: dict[object, torch.Tensor] = {}

    def tensor(index: int, saved_device: str) -> torch.Tensor:
        device = devices[saved_device]
        if (index, device) not in made:
            buffer, entry = source.fetched(index)
            made[index, device] = own_tensor(buffer, entry, device)
        return made[index, device]

    arrays: dict[int, np.ndarray[Any, Any]] = {}

    def array(index: int) -> np.ndarray[Any, Any]:
        if index not in arrays:
            arrays[index] = own_array(*source.fetched(index))
        return arrays[index]

    return decode(tree, leaf=lambda node: decode_leaf(node, tensor), array=array)


def _device(saved: str, map_location: MapLocation, path: str) -> torch.device:
    if isinstance(map_location, Mapping):
        text: str | torch.device = map_location.get(saved, saved)
    else:
        text = saved if map_location is None else map_location
    try:
        wanted = torch.device(text)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"{path or 'a tensor'}: {text!r:.40} is not a device", hint="as in map_location='cpu'"
        ) from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise MismatchError(
            f"{path or 'a tensor'}: {wanted} is not on this machine", hint="say where it goes, as in map_location='cpu'"
        )
    return wanted


def _decode_views(tree: object, source: TensorSource) -> Any:
    """As `decode_value` on the CPU, but tensors share the fetched memory: only for what is copied at once."""
    return decode(
        tree,
        leaf=lambda node: decode_leaf(node, lambda index, device: tensor_view(*source.fetched(index))),
        array=lambda index: own_array(*source.fetched(index)),
    )


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
        A line for each thing that was skipped or converted; empty when everything fitted.

    Raises:
        MismatchError: kind, keys, shapes or numbers of parameters do not fit; nothing was loaded into a module or
            optimizer then.
        UsageError: `override` names a key that is not there.
    """
    kind = kind_of(name, obj)
    if saved["kind"] != kind:
        raise MismatchError(
            f"{name}: {with_article(kind)} ({type(obj).__name__}) is tracked, "
            f"the snapshot holds {with_article(saved['kind'])} of that name",
            hint="track the same objects under the same names",
        )
    if kind == "module":
        assert isinstance(obj, torch.nn.Module)
        return into_module.load(name, obj, _module_state(name, saved["state"], source), strict=strict)
    if kind == "optimizer":
        assert isinstance(obj, torch.optim.Optimizer)
        into_optimizer.load(name, obj, decode_value(saved["state"], source, map_location="cpu"), override=override)
        return ()
    _load_other(name, kind, obj, decode_value(saved["state"], source, path=name, map_location=map_location), override)
    return ()


def _module_state(name: str, tree: Any, source: TensorSource) -> dict[str, Any]:
    state: dict[str, Any] = _decode_views(tree, source)
    extra = [key for key in state if key.endswith("_extra_state")]
    if extra:
        # A module's set_extra_state may keep what it is given.
        owned = decode_value(tree, source, path=name, map_location="cpu")
        state.update({key: owned[key] for key in extra})
    return state


def check_override(name: str, obj: Any, override: Sequence[str]) -> None:
    """Whether `override` can be followed, before there is anything to restore.

    Raises:
        UsageError: it names a key that is not there, or the object is of a kind that has none.
    """
    if not override:
        return
    kind = kind_of(name, obj)
    if kind == "optimizer":
        into_optimizer.check_override(name, obj, override)
    elif kind not in _WITH_KEYS:
        raise UsageError(
            f"track: override={{{name!r}: ...}} does not apply to {with_article(kind)}", hint="leave it out"
        )
    else:
        _check_keys(name, obj.state_dict() if kind == "stateful" else obj, override)


def _load_other(name: str, kind: str, obj: Any, state: Any, override: Sequence[str]) -> None:
    if kind not in _WITH_KEYS:
        check_override(name, obj, override)
    if kind == "generator":
        _put_generator(name, obj, state)
    elif kind == "stateful":
        _keep(name, state, obj.state_dict() if override else {}, override)
        obj.load_state_dict(state)
    elif kind in ("tensor", "array"):
        _copy_values(name, obj, state)
    elif kind == "list" and isinstance(obj, list):
        obj[:] = state
    else:
        if kind == "dict":
            _keep(name, state, dict(obj), override)
        obj.clear()
        obj.extend(state) if kind == "list" else obj.update(state)


def _keep(name: str, state: Any, live: Mapping[Any, Any], override: Sequence[str]) -> None:
    _check_keys(name, live, override)
    for key in override:
        state[key] = live[key]


def _check_keys(name: str, live: Mapping[Any, Any], override: Sequence[str]) -> None:
    for key in override:
        if key not in live:
            raise UsageError(
                f"track: override={{{name!r}: [{key!r}]}}: {name} has no {key!r}",
                hint=f"it has {', '.join(map(str, list(live)[:10])) or 'nothing'}",
            )


def _put_generator(name: str, obj: Any, state: Any) -> None:
    try:
        restore_generator(obj, state)
    except (ValueError, RuntimeError) as error:
        raise MismatchError(f"{name}: {error}", hint="use the same kind of generator as before") from error


def _copy_values(name: str, obj: Any, state: Any) -> None:
    if tuple(obj.shape) != tuple(state.shape) or obj.dtype != state.dtype:
        raise MismatchError(
            f"{name}: saved as {state.dtype} {tuple(state.shape)}, tracked as {obj.dtype} {tuple(obj.shape)}",
            hint="track one of the same dtype and shape",
        )
    if isinstance(obj, torch.Tensor):
        with torch.no_grad():
            obj.copy_(state)
    else:
        obj[...] = state
