"""Restore: from a part's tree and tensors back into the live objects, in place.

In two steps, with the reading between them: `prepare` checks everything and says which bytes go where; what it returns
puts the state into the object. What comes out never shares memory with another object's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from spotckpt.errors import MismatchError, UsageError
from spotckpt.snapshot.tree import decode
from spotckpt.training import into_module, into_optimizer
from spotckpt.training.filling import Filling
from spotckpt.training.hyper import Settings
from spotckpt.training.leaves import decode_leaf
from spotckpt.training.objects import kind_of, with_article
from spotckpt.training.rng import kind_of_generator, restore_generator
from spotckpt.training.tensors import DTYPES, empty_array

_WITH_KEYS = ("stateful", "dict")
_CPU = torch.device("cpu")

MapLocation: TypeAlias = "str | torch.device | Mapping[str, str] | None"

Load: TypeAlias = "Callable[[], tuple[str, ...]]"
"""Puts a state into its object, once it is read; a line for each thing that was skipped or converted."""


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


def decode_value(tree: object, filling: Filling, *, path: str = "", map_location: MapLocation = None) -> Any:
    """The value of an encoded tree, whose tensors and arrays hold nothing before `filling` is read.

    Tensors own their memory and are as tied among themselves as when captured.

    Args:
        tree: such as `part.tree["run"]["vars"]` or `part.tree["objects"]["model"]["state"]`.
        filling: of the part.
        path: for messages.
        map_location: the device for tensors, or a mapping from saved to wanted device; None is the saved device.

    Raises:
        MismatchError: a saved device is not here and `map_location` does not say what to do.
        Corrupt: the tree and the tensor table do not fit.
    """
    devices = {saved: _device(saved, map_location, path) for saved in _saved_devices(tree)}
    return _decode(tree, filling, lambda row, saved: devices[saved])


def _decode(tree: object, filling: Filling, device_of: Callable[[int, str], torch.device | None]) -> Any:
    """As `decode_value`; what has no device is not needed and stays without bytes."""
    made: dict[object, torch.Tensor] = {}
    arrays: dict[int, np.ndarray[Any, Any]] = {}

    def tensor(row: int, saved_device: str) -> torch.Tensor:
        device = device_of(row, saved_device)
        if (row, device) not in made:
            made[row, device] = _outline_of(filling, row) if device is None else filling.fresh(row, device)
        return made[row, device]

    def array(row: int) -> np.ndarray[Any, Any]:
        if row not in arrays:
            arrays[row] = filling.array(row)
        return arrays[row]

    return decode(tree, leaf=lambda node: decode_leaf(node, tensor), array=array)


class _Outline:
    """A state without its bytes: tensors are on the meta device, arrays are never touched.

    Attributes:
        value: decoded.
        uses: how often each row of a tensor stands in the tree.
    """

    def __init__(self, tree: object, filling: Filling) -> None:
        self.uses: Counter[int] = Counter()
        self._filling = filling
        self._tensors: dict[int, torch.Tensor] = {}
        self.value: Any = decode(
            tree,
            leaf=lambda node: decode_leaf(node, self._tensor),
            array=lambda row: empty_array(filling.entry(row)),
        )
        self._rows = {id(tensor): row for row, tensor in self._tensors.items()}

    def _tensor(self, row: int, saved_device: str) -> torch.Tensor:
        if row not in self._tensors:
            self._tensors[row] = _outline_of(self._filling, row)
        self.uses[row] += 1
        return self._tensors[row]

    def row_of(self, value: object) -> int | None:
        """The row of a tensor in the value; None of anything else, and of one that the tree wraps."""
        return self._rows.get(id(value))


def _outline_of(filling: Filling, row: int) -> torch.Tensor:
    entry = filling.entry(row)
    return torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")


def _device(saved: str, map_location: MapLocation, path: str) -> torch.device:
    if isinstance(map_location, Mapping):
        text: str | torch.device = map_location.get(saved, saved)
    else:
        text = saved if map_location is None else map_location
    wanted = _named(text, path)
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise MismatchError(
            f"{path or 'a tensor'}: {wanted} is not on this machine", hint="say where it goes, as in map_location='cpu'"
        )
    return wanted


def _named(text: Any, path: str) -> torch.device:
    try:
        return torch.device(text)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"{path or 'a tensor'}: {text!r:.40} is not a device", hint="as in map_location='cpu'"
        ) from error


def check_map_location(map_location: object) -> None:
    """Whether it names devices, here or elsewhere, before there is anything to restore.

    Raises:
        UsageError: it does not.
    """
    for device in map_location.values() if isinstance(map_location, Mapping) else (map_location,):
        if device is not None or isinstance(map_location, Mapping):
            _named(device, "track: map_location")


def prepare(
    name: str,
    obj: object,
    saved: Mapping[str, Any],
    filling: Filling,
    *,
    strict: bool = True,
    map_location: MapLocation = None,
    override: Sequence[str] = (),
    settings: Settings | None = None,
) -> Load:
    """Checks whether a saved state fits a live object, and joins to `filling` what has to be read for it.

    Args:
        name: under which it is tracked.
        obj: nothing of it is changed before `filling` is read.
        saved: `part.tree["objects"][name]`: its `kind` and encoded `state`.
        filling: of the part.
        strict: False skips keys and shapes of a module that do not fit.
        map_location: where tensors go that are not copied into existing ones.
        override: keys whose live value wins: of an optimizer's `param_groups`, or top-level ones of another state.
        settings: of an optimizer or scheduler, what is known of how it was built.

    Raises:
        MismatchError: kind, keys, shapes or numbers of parameters do not fit.
        UsageError: `override` names a key that is not there.
    """
    kind = kind_of(name, obj)
    if saved["kind"] != kind:
        raise MismatchError(
            f"{name}: {with_article(kind)} ({type(obj).__name__}) is tracked, "
            f"the snapshot holds {with_article(saved['kind'])} of that name",
            hint="track the same objects under the same names",
        )
    check_override(name, obj, override)
    if isinstance(obj, torch.nn.Module):
        return _prepare_module(name, obj, saved["state"], filling, strict)
    if isinstance(obj, torch.optim.Optimizer):
        return _prepare_optimizer(name, obj, saved["state"], filling, override=override, settings=settings)
    if isinstance(obj, torch.Tensor):
        return _prepare_tensor(name, obj, saved["state"], filling)
    state = decode_value(saved["state"], filling, path=name, map_location=map_location)
    if settings is not None:
        state = settings.merge(state)
    return _prepare_other(name, kind, obj, state, override)


def _prepare_module(name: str, module: torch.nn.Module, tree: Any, filling: Filling, strict: bool) -> Load:
    outline = _Outline(tree, filling)
    fit = into_module.fit(name, module, outline.value, strict=strict)
    places = into_module.places(module)
    for key, value in list(fit.state.items()):
        row = outline.row_of(value)
        if row is not None and key in places and filling.into(row, places[key]):
            # loading copies a tensor onto itself then, which costs nothing
            fit.state[key] = places[key]
            outline.uses[row] -= 1
    others = [key for key, value in fit.state.items() if value is not places.get(key)]
    if others:
        owned = into_module.renamed(
            _decode(tree, filling, lambda row, saved: _CPU if outline.uses[row] else None), module.state_dict()
        )
        fit.state.update({key: owned[key] for key in others})
    return lambda: into_module.load(name, module, fit, strict=strict)


def _prepare_optimizer(
    name: str,
    optimizer: torch.optim.Optimizer,
    tree: Any,
    filling: Filling,
    *,
    override: Sequence[str],
    settings: Settings | None,
) -> Load:
    outline = _Outline(tree, filling)
    into_optimizer.check(name, optimizer, outline.value)
    devices = {
        row: device
        for tensor, device in into_optimizer.devices(optimizer, outline.value)
        if (row := outline.row_of(tensor)) is not None
    }
    state = _decode(tree, filling, lambda row, saved: devices.get(row, _CPU))

    def load() -> tuple[str, ...]:
        into_optimizer.load(optimizer, state, override=override, settings=settings)
        return ()

    return load


def _prepare_tensor(name: str, obj: torch.Tensor, tree: Any, filling: Filling) -> Load:
    outline = _Outline(tree, filling)
    _check_values(name, obj, outline.value)
    row = outline.row_of(outline.value)
    state = obj if row is not None and filling.into(row, obj) else decode_value(tree, filling, map_location="cpu")

    def load() -> tuple[str, ...]:
        with torch.no_grad():
            obj.copy_(state)
        return ()

    return load


def _prepare_other(name: str, kind: str, obj: Any, state: Any, override: Sequence[str]) -> Load:
    if kind == "generator" and state.get("kind") != kind_of_generator(obj):
        raise MismatchError(
            f"{name}: a state of a {state.get('kind')} generator does not fit a {kind_of_generator(obj)} one",
            hint="use the same kind of generator as before",
        )
    if kind == "array":
        _check_values(name, obj, state)

    def load() -> tuple[str, ...]:
        _load_other(name, kind, obj, state, override)
        return ()

    return load


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
    if kind == "generator":
        _put_generator(name, obj, state)
    elif kind == "stateful":
        _keep(name, state, obj.state_dict() if override else {}, override)
        obj.load_state_dict(state)
    elif kind == "array":
        obj[...] = state
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


def _check_values(name: str, obj: Any, state: Any) -> None:
    if tuple(obj.shape) != tuple(state.shape) or obj.dtype != state.dtype:
        raise MismatchError(
            f"{name}: saved as {state.dtype} {tuple(state.shape)}, tracked as {obj.dtype} {tuple(obj.shape)}",
            hint="track one of the same dtype and shape",
        )
