"""The fields of a request, checked.

Each raises UsageError, which names the operation, the field and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spotckpt.errors import UsageError


def text_of(message: Mapping[str, Any], name: str) -> str:
    """A text that is not empty."""
    value = message.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{message.get('op')}: {name} is {value!r}, not a text", hint="give it")
    return value


def texts_of(message: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list of texts; a missing one is empty."""
    value = message.get(name) or []
    if not isinstance(value, list):
        raise UsageError(f"{message.get('op')}: {name} is {value!r}, not a list", hint="give texts")
    return tuple(str(item) for item in value)


def count_of(message: Mapping[str, Any], name: str) -> int:
    """An integer from 0."""
    value = message.get(name)
    if type(value) is not int or value < 0:
        raise UsageError(f"{message.get('op')}: {name} is {value!r}, not a count", hint="give it")
    return value


def seconds_of(message: Mapping[str, Any], name: str) -> float | None:
    """Seconds from 0, or None if there are none."""
    value = message.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise UsageError(f"{message.get('op')}: {name} is {value!r}, not seconds", hint="give a number of seconds")
    return float(value)
