"""Metric values: one number as float64, or anything else that a state tree can hold, encoded by itself.

An encoded value is the length of a JSON text (4 bytes, little-endian), the text `[tree, [[dtype, shape], ...]]`, and
the bytes of the arrays that the tree refers to, one after the other, row-major.
"""

from __future__ import annotations

import json
from typing import Any

from spotckpt.errors import Corrupt, EncodeError, UsageError
from spotckpt.snapshot.tree import ARRAY_DTYPES, decode, encode

MAX_VALUE_BYTES = 64 << 20


def as_number(value: object, path: str) -> float | None:
    """One number as float64, or None if it is something else.

    Raises:
        UsageError: an integer that no float64 can hold.
    """
    item = getattr(value, "item", None)
    if getattr(value, "ndim", None) == 0 and callable(item):
        value = item()
    if not isinstance(value, float | int):
        return None
    try:
        return float(value)
    except OverflowError as error:
        raise UsageError(f"metric {path}: {error}", hint="log a float") from error


def encode_value(value: object, path: str) -> bytes:
    """A value that is not one number.

    Raises:
        EncodeError: it holds something that cannot be stored, named by its path, or is too large.
    """
    arrays: list[Any] = []

    def add(array: Any, where: str) -> int:
        arrays.append(array)
        return len(arrays) - 1

    tree = encode(value, path=path, leaf=lambda one, where: _leaf(one, where, add), array=add)
    table = [[array.dtype.str, list(array.shape)] for array in arrays]
    text = json.dumps([tree, table], separators=(",", ":"), allow_nan=False).encode()
    data = b"".join([len(text).to_bytes(4, "little"), text, *(array.tobytes() for array in arrays)])
    if len(data) > MAX_VALUE_BYTES:
        raise EncodeError(
            f"metric {path}: a value of {len(data)} bytes is over {MAX_VALUE_BYTES}",
            hint="track it, or keep it in vars",
        )
    return data


def _leaf(value: Any, path: str, add: Any) -> Any:
    """A tensor becomes an array on the CPU; None is for anything else."""
    if not (hasattr(value, "detach") and hasattr(value, "cpu")):
        return None
    plain = value.detach().cpu()
    try:
        array = plain.numpy()
    except (TypeError, RuntimeError):  # a dtype that numpy lacks, as bfloat16, is exact in float32
        array = plain.float().numpy()
    return encode(array, path=path, array=add)


def decode_value(data: bytes | bytearray, path: str) -> Any:
    """The inverse of `encode_value`.

    Raises:
        Corrupt: it is nothing that `encode_value` wrote.
    """
    try:
        end = 4 + int.from_bytes(data[:4], "little")
        tree, table = json.loads(bytes(data[4:end]))
        return decode(tree, array=_arrays(memoryview(data)[end:], table).__getitem__)
    except (ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
        raise Corrupt(f"metric {path}: a value cannot be read: {error}", hint="use another snapshot") from error


def _arrays(data: memoryview, table: Any) -> list[Any]:
    import numpy

    found, at = [], 0
    for dtype, shape in table:
        if dtype not in ARRAY_DTYPES or any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"{dtype!r:.20} is no dtype of an array")
        array = numpy.empty(0, dtype)
        size = array.itemsize * int(numpy.prod(shape, dtype=object))
        array = numpy.frombuffer(bytes(data[at : at + size]), dtype).reshape(shape)
        found.append(array)
        at += size
    if at != len(data):
        raise ValueError("arrays of another length")
    return found
