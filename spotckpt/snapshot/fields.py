"""Reading the fields of a record: each of exactly its type, or the record is corrupt."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from spotckpt.errors import AddressError, Corrupt
from spotckpt.snapshot.keys import SnapshotId

T = TypeVar("T")

MAX_INT = 2**63 - 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Fields:
    """The fields of one JSON object at `key`. Every reader raises `Corrupt` when the field is not what it should be."""

    def __init__(self, body: Any, key: str) -> None:
        self.key = key
        if type(body) is not dict:
            raise self.corrupt("an object was expected")
        self.body: dict[str, Any] = body

    def corrupt(self, what: str) -> Corrupt:
        """The error for this record."""
        return Corrupt(f"{self.key}: {what}", hint="the record was not written by this version of spotckpt")

    def get(self, name: str, kind: type[T]) -> T:
        """The field, of exactly that type."""
        value = self.body.get(name)
        if type(value) is not kind:
            raise self.corrupt(f"field {name!r} is not {kind.__name__}")
        return value

    def text(self, name: str) -> str:
        """A string."""
        return self.get(name, str)

    def flag(self, name: str) -> bool:
        """true or false."""
        return self.get(name, bool)

    def count(self, name: str, *, least: int = 0) -> int:
        """An integer from `least` to 2**63 - 1."""
        value = self.get(name, int)
        if not least <= value <= MAX_INT:
            raise self.corrupt(f"field {name!r} is out of range")
        return value

    def seconds(self, name: str) -> float:
        """A finite number."""
        value = self.body.get(name)
        if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
            raise self.corrupt(f"field {name!r} is not a number")
        return float(value)  # type: ignore[arg-type]

    def digest(self, name: str) -> str:
        """64 hex digits."""
        value = self.text(name)
        if not _DIGEST.fullmatch(value):
            raise self.corrupt(f"field {name!r} is not a digest")
        return value

    def snapshot(self, name: str) -> SnapshotId:
        """A snapshot id in its canonical spelling."""
        return self._snapshot(self.text(name), name)

    def maybe_snapshot(self, name: str) -> SnapshotId | None:
        """A snapshot id, or null."""
        return None if self.body.get(name) is None and name in self.body else self.snapshot(name)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object of any JSON values."""
        return self.get(name, dict)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.get(name, list)
        if any(type(value) is not str for value in values):
            raise self.corrupt(f"field {name!r} is not a list of strings")
        return tuple(values)

    def counts(self, name: str) -> tuple[int, ...]:
        """A list of integers from 0 to 2**63 - 1."""
        values = self.get(name, list)
        if any(type(value) is not int or not 0 <= value <= MAX_INT for value in values):
            raise self.corrupt(f"field {name!r} is not a list of sizes")
        return tuple(values)

    def each(self, name: str, reader: Callable[[Fields], T]) -> tuple[T, ...]:
        """A list of objects, each read by `reader`."""
        return tuple(reader(Fields(value, self.key)) for value in self.get(name, list))

    def _snapshot(self, text: str, name: str) -> SnapshotId:
        try:
            return SnapshotId.parse(text)
        except AddressError as error:
            raise self.corrupt(f"field {name!r} is not a snapshot id") from error


def number_to_json(value: float) -> float | str:
    """A float as JSON can hold it: NaN and the infinities become `"nan"`, `"inf"` and `"-inf"`."""
    return value if math.isfinite(value) else str(value)


def number_from_json(value: Any, fields: Fields) -> float:
    """The inverse of `number_to_json`."""
    if type(value) in (int, float):
        return float(value)
    if type(value) is str and value in ("nan", "inf", "-inf"):
        return float(value)
    raise fields.corrupt("a metric is not a number")


def numbers_to_json(values: Mapping[str, float]) -> dict[str, float | str]:
    """`number_to_json` of every value."""
    return {name: number_to_json(value) for name, value in values.items()}


def numbers_from_json(name: str, fields: Fields) -> dict[str, float]:
    """The field as a mapping from names to floats."""
    return {key: number_from_json(value, fields) for key, value in fields.mapping(name).items()}
