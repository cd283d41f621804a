"""The agent's log: a line an event, as `key=value` pairs or as JSON.

Each line has `time` (UTC), `level` and `message`; further fields follow where they are known: `run`, `attempt`,
`snapshot`, `bytes`, `seconds`, and for an error its class as `error` and its exit status as `status`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, Literal, get_args

from spotckpt.errors import SpotckptError, StopTraining
from spotckpt.redact import redacted, secrets_of, without

LogFormat = Literal["key=value", "json"]
LOG_FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)

_BARE = re.compile(r"[^\s\"'=\\]+")
_ABOUT: ContextVar[dict[str, Any]] = ContextVar("about", default={})  # noqa: B039  never changed in place


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Inside, and in this thread, every line has these fields."""
    token = _ABOUT.set({**_ABOUT.get(), **fields})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def fields(**found: Any) -> dict[str, Any]:
    """For `extra=`: this line has these fields."""
    return {"fields": found}


def log_to_stderr(log_format: LogFormat = "key=value", *, verbose: bool = False) -> None:
    """Writes what spotckpt has to say to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(log_format))
    logger = logging.getLogger("spotckpt")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False


class _Lines(logging.Formatter):
    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._write = _as_json if log_format == "json" else _as_pairs
        self._secrets = secrets_of(os.environ)

    def format(self, record: logging.LogRecord) -> str:
        """One line: what would break it is escaped."""
        found = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_ABOUT.get(),
            **getattr(record, "fields", {}),
            **_of_error(record),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return self._write({name: self._clean(value) for name, value in found.items() if value is not None})

    def _clean(self, value: Any) -> Any:
        return without(redacted(value), self._secrets) if isinstance(value, str) else value


def _of_error(record: logging.LogRecord) -> dict[str, Any]:
    """The error that the line tells of."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    error = next((found for found in arguments if isinstance(found, SpotckptError | StopTraining)), None)
    return {} if error is None else {"error": type(error).__name__, "status": error.exit_status}


def _as_json(found: dict[str, Any]) -> str:
    return json.dumps(found)


def _as_pairs(found: dict[str, Any]) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in found.items())


def _value(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)
