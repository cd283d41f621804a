"""A checkpoint as one plain dictionary, and what dictionaries of others mean."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spotckpt.errors import Corrupt, SpotckptError, UsageError
from spotckpt.moving.contents import FORMAT, MARK, Contents, is_weights
from spotckpt.moving.formats import OWN_KEYS
from spotckpt.moving.histories import Columns, checked
from spotckpt.moving.plain import from_plain, to_plain
from spotckpt.moving.torch_file import OldHandler, check_format

MAX_STEP = 10**18 - 1
"""What a snapshot's id has room for."""
HANDLER = "pytorchcheckpoint"
"""What the `spotckpt` entry of the adapter's files says that they are."""
_POSITION: dict[str, Any] = {"left_by": "", "active": None, "ended_steps": None, "warm": []}
_STEPS = ("step", "global_step", "iteration", "iterations")
_EPOCHS = ("epoch", "epochs")
_STATEFUL = ("scheduler", "lr_scheduler", "scaler", "grad_scaler", "ema")


def to_document(contents: Contents) -> Mapping[str, Any]:
    """What `torch.load(weights_only=True)` shall give. Raises as `to_plain` does."""
    if contents.bare is not None:
        bare: Mapping[str, Any] = to_plain(contents.bare, "")
        return bare
    contents.check_names()
    whole = {
        **contents.objects,
        "vars": contents.vars,
        "history": _as_tensors(contents.history),
        "step": contents.step,
        "epoch": contents.epoch,
        MARK: {**contents.about(), "run": contents.run},
    }
    return {name: to_plain(value, name) for name, value in whole.items()}


def _as_tensors(history: Columns) -> Any:
    """Numbers as tensors: a reader need not know numpy."""

    def of(column: Any) -> Any:
        return torch.from_numpy(column) if isinstance(column, np.ndarray) else column

    return {
        set_: {name: {field: of(column) for field, column in one.items()} for name, one in names.items()}
        for set_, names in history.items()
    }


def from_document(loaded: Any, name: object) -> Contents:
    """The checkpoint in what a file of `torch.save`, or a DCP directory, gave.

    Raises:
        FutureFormat, Corrupt, UsageError: it is from a newer version, damaged, or no checkpoint.
    """
    if isinstance(loaded, torch.nn.Module):
        loaded = loaded.state_dict()
    if isinstance(loaded, OldHandler):
        return _of_handler(vars(loaded), name)
    if not isinstance(loaded, Mapping):
        raise UsageError(f"{name} holds a {type(loaded).__name__}, no dictionary", hint="save a dictionary of states")
    about = loaded.get(MARK)
    if not isinstance(about, Mapping):
        return _of_others(loaded)
    check_format(about, name, FORMAT)
    if about.get("kind") == HANDLER:
        return _of_handler(handler_values(loaded), name)
    return _of_ours(loaded, about, name)


# Files of ours


def _of_ours(loaded: Mapping[str, Any], about: Mapping[str, Any], name: object) -> Contents:
    try:
        values = {key: from_plain(value) for key, value in loaded.items()}
        about = values[MARK]
        return Contents(
            objects={key: value for key, value in values.items() if key not in OWN_KEYS},
            kinds={key: str(about["kinds"][key]) for key in values if key not in OWN_KEYS},
            run=dict(about["run"]),
            vars=dict(values["vars"]),
            history=checked(values["history"], name),
            step=_count(values["step"], "step", name),
            epoch=_count(values["epoch"], "epoch", name, least=-1),
            arguments=dict(about["arguments"]),
            environment=dict(about["environment"]),
            evaluated={key: float(value) for key, value in about["evaluated"].items()},
            source=str(about["source"]),
        )
    except SpotckptError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Corrupt(
            f"{name}: its entries do not fit each other: {error!r:.200}",
            hint=f"it was changed by another program: take out its {MARK!r} entry to push it as a plain dictionary",
        ) from error


def _count(value: Any, what: str, name: object, *, least: int = 0) -> int:
    """A number of steps. NaN, fractions and what no snapshot's id has room for are refused before anything is made."""
    if isinstance(value, (torch.Tensor, np.generic)) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if type(value) is float and math.isfinite(value) and value == int(value):
        value = int(value)
    if type(value) is not int or not least <= value <= MAX_STEP:
        raise UsageError(f"{name}: {what} is {value!r:.40}, which is no number of steps", hint="say which: --step N")
    return value


# Files of others


def _of_others(loaded: Mapping[Any, Any]) -> Contents:
    """By what the values look like: states become objects, all else `vars`."""
    kind = _kind("", loaded)
    if kind is not None:
        name = "optimizer" if kind == "optimizer" else "model"
        return imported({name: loaded}, {name: kind}, {})
    objects, kinds, values = {}, {}, {}
    for key, value in loaded.items():
        kind = _kind(key, value)
        if kind is None:
            values[str(key)] = value
            continue
        short = str(key).removesuffix("_state_dict").removesuffix("_state")
        wanted = "model" if key == "state_dict" else short
        name = wanted if wanted not in objects and wanted not in OWN_KEYS and wanted else str(key)
        objects[name], kinds[name] = value, kind
    step = next((_as_count(values[key]) for key in _STEPS if key in values), None)
    epoch = next((_as_count(values[key]) for key in _EPOCHS if key in values), None)
    return imported(objects, kinds, values, step=step or 0, epoch=-1 if epoch is None else epoch)


def _as_count(value: Any) -> int | None:
    try:
        return _count(value, "", "")
    except UsageError:
        return None


def _kind(key: object, value: object) -> str | None:
    if not isinstance(value, Mapping):
        return None
    if {"state", "param_groups"} <= value.keys():
        return "optimizer"
    if is_weights(value):
        return "module"
    named = str(key).endswith("_state_dict") or key in _STATEFUL
    return "stateful" if named else None


def imported(
    objects: Mapping[str, Any],
    kinds: Mapping[str, str],
    values: Mapping[str, Any],
    *,
    step: int = 0,
    epoch: int = -1,
    history: Columns | None = None,
    rng: Any = None,
) -> Contents:
    """A checkpoint of another program: where its loops stood is known by a step and an epoch alone."""
    generators = None if rng is None else {"rng": rng, "watched": {}, "table": [], "slots": {}}
    place = {"loop": 0, "epoch": 0, "over": False, "calls": 0}
    at = {"epoch": max(epoch, 0), "step": step}
    run = {
        "step": step,
        "at": {"epoch": max(epoch, 0), "batch": 0},
        "position": {**_POSITION, "place": place, "generators": generators, "imported": at},
        "gradients": {},
    }
    return Contents(
        {name: _owned(one) for name, one in objects.items()},
        dict(kinds),
        run=run,
        vars=dict(values),
        history=history or {},
        step=step,
        epoch=epoch,
    )


def _owned(state: Any) -> Any:
    """A mapping of a known type: what was read may be a subclass."""
    return state if type(state) in (dict, OrderedDict) else dict(state)


# pytorchcheckpoint's object

_STATES = {"model": "module", "optimizer": "optimizer", "scheduler": "stateful"}


def handler_values(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of the object in a file of the adapter."""
    return {name: from_plain(value) for name, value in loaded.items() if name != MARK}


def _of_handler(attributes: Mapping[str, Any], name: object) -> Contents:
    values = dict(attributes)
    objects = {one: values.pop(f"{one}_state_dict") for one in _STATES if f"{one}_state_dict" in values}
    rng, step = values.pop("rng_state", None), _count(values.pop("iteration", 0), "iteration", name)
    values.pop("prefix_name", None)
    history: Columns = {}
    for key in list(values):
        if _take(history, key, values[key]):
            del values[key]
    return imported(objects, _kinds_of(objects), values, step=step, history=history, rng=rng)


def _kinds_of(objects: Mapping[str, Any]) -> dict[str, str]:
    return {name: _STATES[name] for name in objects}


def _take(history: Columns, key: str, value: Any) -> bool:
    """Takes a running variable, with or without a header, into the history; False if it is something else."""
    if not isinstance(value, dict) or "/" in key or ":" in key:
        return False
    sets = {"running": {key: value}} if _is_running(value) else {key: value}
    series = [(set_, name, one) for set_, names in sets.items() for name, one in names.items()]
    if not series or not all(_is_running(one) and type(name) is str and ":" not in name for _, name, one in series):
        return False
    for set_, name, one in series:
        steps = sorted(one)
        history.setdefault(set_, {})[name] = {
            "step": np.array(steps, np.int64),
            "epoch": np.full(len(steps), -1, np.int64),
            "value": np.array([float(one[step]) for step in steps]),
        }
    return True


def _is_running(value: Any) -> bool:
    """iteration → number."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(type(key) is int and 0 <= key <= MAX_STEP for key in value)
        and all(isinstance(one, (int, float, np.number)) and type(one) is not bool for one in value.values())
    )
