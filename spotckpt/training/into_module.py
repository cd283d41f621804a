"""Loading a module: names with and without the prefixes of DDP and torch.compile, and what does not fit."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from spotckpt.errors import MismatchError

_WRAPPERS = {"module", "_orig_mod"}
_MAX_LISTED = 10


@dataclass(frozen=True)
class Fit:
    """How a saved state fits a module.

    Attributes:
        state: what of it can be loaded, under the live module's names. A `_metadata` attribute (versions of submodules)
            is the saved one's.
        lines: one for each key that is skipped, and for each that is converted to another dtype.
    """

    state: OrderedDict[str, Any]
    lines: tuple[str, ...]


def fit(name: str, module: torch.nn.Module, state: Mapping[str, Any], *, strict: bool) -> Fit:
    """Compares keys, shapes and dtypes; of tensors nothing else is looked at.

    Args:
        name: for messages.
        module: not changed.
        state: decoded.
        strict: whether keys and shapes must all fit; otherwise those that do not are skipped.

    Raises:
        MismatchError: something does not fit and `strict` is true.
    """
    live = module.state_dict()
    same = renamed(state, live)
    lines = _differences(same, live)
    if strict and lines:
        raise MismatchError(
            f"{name} does not fit the snapshot: {_summary(lines)}",
            hint="build the same model, or track it with strict=False to skip these",
        )
    fitting = OrderedDict((key, value) for key, value in same.items() if key in live and _fits(value, live[key]))
    fitting._metadata = getattr(same, "_metadata", OrderedDict())  # type: ignore[attr-defined]
    converted = [
        _conversion(key, value, live[key]) for key, value in fitting.items() if _is_converted(value, live[key])
    ]
    return Fit(fitting, (*lines, *converted))


def load(name: str, module: torch.nn.Module, fitting: Fit, *, strict: bool) -> tuple[str, ...]:
    """Loads what fits, in place; tensors are copied, not kept.

    Returns:
        The lines of the fit.

    Raises:
        MismatchError: the module refuses it.
    """
    try:
        module.load_state_dict(fitting.state, strict=strict)
    except RuntimeError as error:
        raise MismatchError(f"{name} does not fit the snapshot: {error}", hint="build the same model") from error
    return fitting.lines


def places(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, by key, that loading does nothing to but copy the state's tensor into them.

    Submodules that load in a way of their own (by an override, or a hook that may change the state) are left out.
    """
    if type(module).load_state_dict is not torch.nn.Module.load_state_dict:
        return {}
    parts = module.named_modules(remove_duplicate=False)
    own_way = tuple(f"{path}." if path else "" for path, part in parts if _loads_its_own_way(part))
    tensors = itertools.chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    )
    return {
        key: tensor
        for key, tensor in tensors
        if type(tensor) in (torch.Tensor, torch.nn.Parameter) and not key.startswith(own_way)
    }


def _loads_its_own_way(module: torch.nn.Module) -> bool:
    # torch's own overrides, as BatchNorm's, add or rename keys and leave the tensors alone
    plain = type(module)._load_from_state_dict.__module__.startswith("torch.nn.modules.")
    return not plain or bool(module._load_state_dict_pre_hooks)


def bare(key: str) -> str:
    """The key without the prefixes of wrappers, wherever they stand: a submodule may be compiled."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def renamed(state: Mapping[str, Any], live: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state under the live module's names. As it is where they agree, or where stripping would be ambiguous."""
    names = {bare(key): key for key in live}
    if state.keys() == live.keys() or len(names) < len(live) or len({bare(key) for key in state}) < len(state):
        return state
    found = OrderedDict((names.get(bare(key), key), value) for key, value in state.items())
    versions = {bare(path): value for path, value in getattr(state, "_metadata", {}).items()}
    found._metadata = OrderedDict(  # type: ignore[attr-defined]
        (path, versions[bare(path)]) for path in getattr(live, "_metadata", {}) if bare(path) in versions
    )
    return found


def _differences(state: Mapping[str, Any], live: Mapping[str, Any]) -> list[str]:
    missing = [f"not in the snapshot: {key}" for key in live if key not in state]
    unexpected = [f"not in the model: {key}" for key in state if key not in live]
    shapes = [
        f"shape of {key}: {_shape(value)} in the snapshot, {_shape(live[key])} in the model"
        for key, value in state.items()
        if key in live and not _fits(value, live[key])
    ]
    return missing + unexpected + shapes


def _fits(saved: Any, live: Any) -> bool:
    if not isinstance(saved, torch.Tensor) or not isinstance(live, torch.Tensor):
        return isinstance(saved, torch.Tensor) == isinstance(live, torch.Tensor)
    if is_lazy(live):
        return True
    return not is_lazy(saved) and saved.shape == live.shape


def _shape(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return "uninitialized" if is_lazy(value) else str(tuple(value.shape))


def _is_converted(saved: Any, live: Any) -> bool:
    both = isinstance(saved, torch.Tensor) and isinstance(live, torch.Tensor)
    return both and not is_lazy(live) and saved.dtype != live.dtype


def _conversion(key: str, saved: Any, live: Any) -> str:
    return f"dtype of {key}: converted from {saved.dtype} to {live.dtype}"


def _summary(lines: Iterable[str]) -> str:
    """At most ten lines of each sort, joined."""
    sorts: dict[str, list[str]] = {}
    for line in lines:
        sorts.setdefault(line.split(" of ")[0].split(":")[0], []).append(line)
    shown = [line for some in sorts.values() for line in some[:_MAX_LISTED]]
    more = sum(max(0, len(some) - _MAX_LISTED) for some in sorts.values())
    return "; ".join(shown) + (f"; and {more} more" if more else "")
