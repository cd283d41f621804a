"""What can be tracked: the kinds of objects, and the state of each."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spotckpt.errors import UsageError
from spotckpt.training.rng import GENERATOR_TYPES, capture_generator

CONTAINERS: dict[type, str] = {dict: "dict", OrderedDict: "dict", list: "list", deque: "list", set: "set"}
"""Containers that are tracked as they are and filled in place."""

_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset)


def kind_of(name: str, obj: object) -> str:
    """The kind under which an object is saved, which the object that it is restored into must have too.

    Raises:
        UsageError: it cannot be restored in place.
    """
    if isinstance(obj, torch.nn.Module):
        return "module"
    if isinstance(obj, torch.optim.Optimizer):
        return "optimizer"
    if isinstance(obj, GENERATOR_TYPES):
        return "generator"
    if type(obj) in CONTAINERS:
        return CONTAINERS[type(obj)]
    if isinstance(obj, (torch.Tensor, np.ndarray)):
        return "tensor" if isinstance(obj, torch.Tensor) else "array"
    if callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None)):
        return "stateful"
    if isinstance(obj, _IMMUTABLE):
        raise UsageError(
            f"track({name}=...): {with_article(type(obj).__name__)} cannot be changed in place, "
            "so it cannot be restored",
            hint=f"keep it in run.vars: {name} = run.vars.setdefault({name!r}, ...)",
        )
    raise UsageError(
        f"track({name}=...): {with_article(type(obj).__name__)} has no state_dict() and load_state_dict()",
        hint="give it these two methods, or keep its values in run.vars",
    )


def with_article(noun: str) -> str:
    """The noun after "a" or "an"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def state_of(kind: str, obj: Any) -> Any:
    """The live state: nothing is copied, and what the object's own `state_dict` raises comes out unchanged."""
    if kind in ("module", "optimizer", "stateful"):
        return obj.state_dict()
    if kind == "generator":
        return capture_generator(obj)
    return obj.detach() if kind == "tensor" else obj


def why_suspicious(name: str, kind: str, obj: object, state: object) -> str:
    """A warning for an object whose state is empty though it holds something; empty when there is none."""
    if kind not in ("module", "stateful") or not isinstance(state, Mapping) or state:
        return ""
    if kind == "module" and not _holds_tensors(obj):
        return ""
    if kind == "stateful" and not getattr(obj, "__dict__", {}):
        return ""
    return (
        f"the state_dict() of {name} ({type(obj).__name__}) is empty: nothing of it is saved "
        "(torchmetrics: metric.persistent(True); GradScaler: enabled=False)"
    )


def _holds_tensors(module: object) -> bool:
    """Whether a module has tensors outside of its state_dict; activation and pooling layers have none."""
    assert isinstance(module, torch.nn.Module)
    values = (value for part in module.modules() for value in [*vars(part).values(), *part._buffers.values()])
    return any(isinstance(value, torch.Tensor) for value in values)
