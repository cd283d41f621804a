"""The numbers in a tensor's bytes, and how far two tensors are apart. numpy alone; dtypes that it lacks are decoded."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from spotckpt.snapshot.tree import ARRAY_DTYPES

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 20
"""Elements that are decoded at a time."""
_PLAIN = {name: np.dtype(text) for text, name in ARRAY_DTYPES.items()}


class _Float8(NamedTuple):
    """Bits of the exponent and of the fraction, the exponent's bias, and whether the format has infinities; or, if it
    has neither those nor a negative zero (`fnuz`), that code for NaN."""

    exponent_bits: int
    bias: int
    has_infinity: bool = False
    is_fnuz: bool = False


_FLOAT8 = {
    "F8_E4M3": _Float8(4, 7),
    "F8_E5M2": _Float8(5, 15, has_infinity=True),
    "F8_E4M3FNUZ": _Float8(4, 8, is_fnuz=True),
    "F8_E5M2FNUZ": _Float8(5, 16, is_fnuz=True),
}


class Distance(NamedTuple):
    """How two tensors of one shape differ.

    Attributes:
        differing: elements whose value is another; NaN is like NaN, and -0.0 like 0.0.
        largest: the largest absolute difference; NaN if one side is NaN where the other is not.
    """

    differing: int
    largest: float


def distance(a: bytes | bytearray, dtype_a: str, b: bytes | bytearray, dtype_b: str) -> Distance:
    """Compares row-major bytes of as many elements, which may be of different dtypes.

    Raises:
        KeyError: a dtype that is not known.
    """
    decode_a, width_a = _decoder(dtype_a)
    decode_b, width_b = _decoder(dtype_b)
    count, differing, largest = len(a) // width_a, 0, 0.0
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        found = _compare(
            decode_a(memoryview(a)[start * width_a : end * width_a]),
            decode_b(memoryview(b)[start * width_b : end * width_b]),
        )
        differing += found.differing
        largest = float(np.maximum(largest, found.largest))  # NaN wins
    return Distance(differing, largest)


def _compare(a: Array, b: Array) -> Distance:
    if a.dtype.kind in "iu" and b.dtype == a.dtype:
        apart = np.maximum(a, b).view(f"u{a.itemsize}") - np.minimum(a, b).view(f"u{a.itemsize}")
        return Distance(int(np.count_nonzero(apart)), float(apart.max(initial=0)))
    a, b = _wide(a), _wide(b)
    with np.errstate(invalid="ignore", over="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        apart = np.abs(a - b)[~same]
    return Distance(int(apart.size), float(apart.max(initial=0.0)))


def _wide(values: Array) -> Array:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _decoder(dtype: str) -> tuple[Callable[[memoryview], Array], int]:
    """A function from bytes to an array of a dtype that numpy has, and the bytes of an element."""
    if dtype == "BOOL":
        return lambda data: np.frombuffer(data, np.uint8), 1
    if dtype in _PLAIN:
        kind = _PLAIN[dtype]
        return lambda data: np.frombuffer(data, kind), kind.itemsize
    if dtype == "BF16":
        return lambda data: (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4"), 2
    table = _float8(dtype)
    return lambda data: table[np.frombuffer(data, np.uint8)], 1


@lru_cache
def _float8(dtype: str) -> Array:
    """float64[256]: the number of each code."""
    codes = np.arange(256)
    if dtype == "F8_E8M0":
        return np.where(codes == 255, np.nan, 2.0 ** (codes - 127.0))
    of = _FLOAT8[dtype]
    fraction_bits = 7 - of.exponent_bits
    exponent, fraction = (codes & 127) >> fraction_bits, codes & (1 << fraction_bits) - 1
    lead = np.where(exponent == 0, 0.0, 1.0)
    found = (lead + fraction / (1 << fraction_bits)) * 2.0 ** (np.maximum(exponent, 1) - of.bias)
    found = np.where(codes > 127, -found, found)
    if of.is_fnuz:
        return np.where(codes == 128, np.nan, found)
    top = exponent == (1 << of.exponent_bits) - 1
    if of.has_infinity:
        return np.where(top, np.where(fraction == 0, np.copysign(np.inf, found), np.nan), found)
    return np.where(top & (fraction == (1 << fraction_bits) - 1), np.nan, found)
