"""The arguments of a run: recorded in every manifest, and compared when the run goes on."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from spotckpt.errors import UsageError
from spotckpt.redact import redacted_value

MAX_TEXT = 500
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def bound_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, defaults included, without the first one, which is the run itself.

    Raises:
        UsageError: the function takes no run.
        TypeError: the arguments do not fit the function, as Python says it.
    """
    signature = inspect.signature(function)
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:
        if signature.parameters:
            raise
        name = getattr(function, "__qualname__", function)
        raise UsageError(f"{name} takes no argument", hint="give it a first parameter, as in def train(run)") from None
    bound.apply_defaults()
    _run, *names = bound.arguments
    return {name: bound.arguments[name] for name in names}


def overridden(arguments: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with a fork's values in place of the caller's, of the caller's types where JSON has none.

    Raises:
        UsageError: there is no such argument.
    """
    for name in overrides:
        if name not in arguments:
            raise UsageError(
                f"this run is a fork that sets {name}, and the training takes no such argument",
                hint=f"its arguments are {', '.join(sorted(arguments)) or 'none'}",
            )
    return {**arguments, **{name: _as(arguments[name], value) for name, value in overrides.items()}}


def _as(given: Any, value: Any) -> Any:
    if type(given) is float and type(value) is int:
        return float(value)
    return tuple(value) if type(given) is tuple and type(value) is list else value


def call(function: Callable[..., Any], run: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Calls the function with the run and the arguments, in which the run's own values replace the caller's."""
    bound = inspect.signature(function).bind(run, *args, **kwargs)
    for name in run.overrides:
        bound.arguments[name] = run.arguments[name]
    return function(*bound.args, **bound.kwargs)


def describe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as plain JSON values, without secrets; anything else as its text, without addresses in memory."""
    return {str(name): redacted_value(str(name), _describe(value, depth=0)) for name, value in arguments.items()}


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, by name: (old, new), None standing for an argument that is not there."""
    names = sorted(name for name in {*old, *new} if name not in old or name not in new or old[name] != new[name])
    return {name: (old.get(name), new.get(name)) for name in names}


def _describe(value: Any, *, depth: int) -> Any:
    if value is None or type(value) in (bool, str) or (type(value) is int and abs(value) < 2**53):
        return value if type(value) is not str else value[:MAX_TEXT]
    if type(value) is float and math.isfinite(value):
        return value
    if depth < 4 and type(value) in (list, tuple):
        return [_describe(item, depth=depth + 1) for item in value[:100]]
    if depth < 4 and type(value) is dict and all(type(key) is str for key in value):
        return {key: _describe(item, depth=depth + 1) for key, item in list(value.items())[:100]}
    return _ADDRESS.sub("", repr(value))[:MAX_TEXT]
