"""Secrets reach no log, no record and no message: what must be one is replaced before it is written anywhere."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
_SHORTEST = 8
"""A shorter value of the environment is not looked for in other texts: it would be found in half of them."""

_PARAMETER = re.compile(
    r"((?:x-amz-(?:signature|credential|security-token)|(?:x-goog-)?signature|sig|(?:\w+_)?(?:token|secret|password|key))"
    r"=)[^&\s\"']+",
    re.IGNORECASE,
)
_QUERY = re.compile(r"\?[^\s\"']+")
_USER = re.compile(r"(?<=://)([^/\s:@]*):[^/\s]+@")
_SECRET_VARIABLE = re.compile(
    r"(^|_)(TOKEN|SECRET|PASS|PASSWORD|PASSWD|CREDENTIALS?|APIKEY|(API|SECRET|ACCESS|PRIVATE)_KEY)$"
)
_SECRET_ARGUMENT = re.compile(
    r"(^|_)(secret|password|passwd|credentials?|apikey|(api|secret|access|private)_key"
    r"|(access|api|auth|bearer|gh|github|hf|hub|refresh|session|wandb)_token)$|^token$"
)


def redacted(text: str) -> str:
    """The text without passwords and signatures in addresses."""
    if "://" not in text and "?" not in text:
        return text
    text = _QUERY.sub(lambda query: _PARAMETER.sub(rf"\1{REDACTED}", query[0]), text)
    return _USER.sub(rf"\1:{REDACTED}@", text)


def redacted_value(name: str, value: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """A JSON value without the secrets of the environment, and whatever a name says to be one, at any depth."""
    if isinstance(value, dict):
        return {key: redacted_value(key, item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [redacted_value(name, item, environ) for item in value]
    if not isinstance(value, str) or not value:
        return value
    return REDACTED if _SECRET_ARGUMENT.search(name.lower()) else without(redacted(value), secrets_of(environ))


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """The values of those variables whose names say that they are secret, the longest first."""
    found = {value for name, value in environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)


def without(text: str, secrets: list[str]) -> str:
    """The text with each of these replaced."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text
