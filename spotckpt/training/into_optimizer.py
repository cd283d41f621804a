"""Loading an optimizer: exactly the saved state, but for the settings that the caller overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from spotckpt.errors import MismatchError, UsageError
from spotckpt.training.grads import parameters_of
from spotckpt.training.hyper import Settings

_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "sum", "prev")
"""State of torch's optimizers that has the parameter's shape; torch itself does not compare."""


def check(name: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Whether a decoded state dict fits; of its tensors only the shapes are looked at.

    Raises:
        MismatchError: groups, numbers of parameters or shapes differ.
    """
    _check_groups(name, optimizer, state)
    _check_shapes(name, optimizer, state)


def devices(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Iterator[tuple[torch.Tensor, torch.device]]:
    """The tensors of the state with the device that `load_state_dict` would move each to: where it is allocated."""
    on_device = {
        id(parameter): group.get("fused") or group.get("capturable")
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for index, parameter in _by_saved_id(optimizer, state).items():
        of_parameter = state["state"].get(index)
        for key, value in of_parameter.items() if isinstance(of_parameter, Mapping) else ():
            if key != "step" or on_device[id(parameter)]:
                yield from ((tensor, parameter.device) for tensor in _tensors_in(value))


def _tensors_in(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors_in(one)


def load(
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    override: Sequence[str] = (),
    settings: Settings | None = None,
) -> None:
    """Loads a decoded state dict that fits; tensors on the parameter's device are kept, not copied.

    Args:
        optimizer: changed in place.
        state: as the optimizer's `state_dict()` gave it.
        override: keys of `param_groups` that keep the live value, as in `["lr"]`.
        settings: what is known of how it was built; then only what is built otherwise is overridden.
    """
    kept = [{key: group[key] for key in override} for group in optimizer.param_groups]
    optimizer.load_state_dict({**state, "state": _without_casts(optimizer, state)})
    for group, values in zip(optimizer.param_groups, kept, strict=True):
        group.update({key: value for key, value in values.items() if settings is None or not settings.knows(key)})
    if settings is not None:
        settings.put(optimizer.param_groups)
    _put_exact_values(optimizer, state)


def check_override(name: str, optimizer: torch.optim.Optimizer, override: Sequence[str]) -> None:
    """Refuses keys that not every parameter group has.

    Raises:
        UsageError: `override` names what is no key of `param_groups`.
    """
    for group in optimizer.param_groups:
        for key in override:
            if key not in group or key == "params":
                raise UsageError(
                    f"track: override={{{name!r}: [{key!r}]}}: no such setting",
                    hint=f"its settings are {', '.join(sorted(set(group) - {'params'}))}",
                )


def _check_groups(name: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    saved = [len(group["params"]) for group in state["param_groups"]]
    live = [len(group["params"]) for group in optimizer.param_groups]
    if saved != live:
        raise MismatchError(
            f"{name}: the snapshot has {len(saved)} parameter group(s) of {saved} parameters, "
            f"the optimizer has {len(live)} of {live}",
            hint=f"build the optimizer over the same parameters, or {_anew(name)}",
        )


def _check_shapes(name: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    for index, parameter in _by_saved_id(optimizer, state).items():
        if torch.nn.parameter.is_lazy(parameter):
            continue
        for key, value in state["state"].get(index, {}).items():
            if key in _LIKE_PARAMETER and isinstance(value, torch.Tensor) and value.shape != parameter.shape:
                raise MismatchError(
                    f"{name}: {key} of parameter {index} has the shape {tuple(value.shape)} in the snapshot, "
                    f"the parameter has {tuple(parameter.shape)}",
                    hint=f"give the optimizer the same parameters in the same order, or {_anew(name)}",
                )


def _anew(name: str) -> str:
    return f"start it anew: run.track(..., drop=[{name!r}], optional=[{name!r}])"


def _by_saved_id(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[Any, torch.nn.Parameter]:
    ids = [one for group in state["param_groups"] for one in group["params"]]
    return dict(zip(ids, parameters_of(optimizer), strict=True))


def _without_casts(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[Any, Any]:
    """The state with empty tensors for those that `load_state_dict` would copy: it gives all the parameter's dtype."""
    handed = dict(state["state"])
    for index, parameter in _by_saved_id(optimizer, state).items():
        if isinstance(handed.get(index), Mapping) and parameter.is_floating_point():
            nothing = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
            handed[index] = {
                key: nothing if key != "step" and _is_cast(value, parameter) else value
                for key, value in handed[index].items()
            }
    return handed


def _is_cast(value: object, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype != parameter.dtype


def _put_exact_values(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Undoes what `load_state_dict` does to dtypes."""
    for index, parameter in _by_saved_id(optimizer, state).items():
        saved, live = state["state"].get(index), optimizer.state.get(parameter)
        if not isinstance(saved, Mapping) or live is None:
            continue
        for key, value in saved.items():
            now = live.get(key)
            if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor) and now.dtype != value.dtype:
                live[key] = value.to(now.device)
