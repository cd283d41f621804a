"""Loading a module: names with and without the prefixes of DDP and torch.compile, and what does not fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from spotckpt.errors import MismatchError

_WRAPPERS = {"module", "_orig_mod"}
_MAX_LISTED = 10


def load(name: str, module: torch.nn.Module, state: Mapping[str, Any], *, strict: bool) -> tuple[str, ...]:
    """Loads a state dict into a module, in place.

    Args:
        name: for messages.
        module: its parameters and buffers are written.
        state: decoded; its tensors are copied, not kept. A `_metadata` attribute (versions of submodules) is honoured.
        strict: whether keys and shapes must all fit; otherwise those that do not are skipped.

    Returns:
        A line for each key that was skipped, and for each that was converted to another dtype.

    Raises:
        MismatchError: something does not fit and `strict` is true. Nothing was loaded.
    """
    live = module.state_dict()
    renamed = _rename(state, live)
    lines = _differences(renamed, live)
    if strict and lines:
        raise MismatchError(
            f"{name} does not fit the snapshot: {_summary(lines)}",
            hint="build the same model, or track it with strict=False to skip these",
        )
    fitting = OrderedDict((key, value) for key, value in renamed.items() if key in live and _fits(value, live[key]))
    fitting._metadata = getattr(renamed, "_metadata", OrderedDict())  # type: ignore[attr-defined]
    converted = [
        _conversion(key, value, live[key]) for key, value in fitting.items() if _is_converted(value, live[key])
    ]
    try:
        module.load_state_dict(fitting, strict=strict)
    except RuntimeError as error:
        raise MismatchError(f"{name} does not fit the snapshot: {error}", hint="build the same model") from error
    return (*lines, *converted)


def bare(key: str) -> str:
    """The key without the prefixes of wrappers, wherever they stand: a submodule may be compiled."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _rename(state: Mapping[str, Any], live: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state under the live module's names. As it is where they agree, or where stripping would be ambiguous."""
    names = {bare(key): key for key in live}
    if state.keys() == live.keys() or len(names) < len(live) or len({bare(key) for key in state}) < len(state):
        return state
    renamed = OrderedDict((names.get(bare(key), key), value) for key, value in state.items())
    versions = {bare(path): value for path, value in getattr(state, "_metadata", {}).items()}
    renamed._metadata = OrderedDict(  # type: ignore[attr-defined]
        (path, versions[bare(path)]) for path in getattr(live, "_metadata", {}) if bare(path) in versions
    )
    return renamed


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
