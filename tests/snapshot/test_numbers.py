"""The numbers in a tensor's bytes are those that torch sees in them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spotckpt.snapshot.numbers import _decoder, distance
from spotckpt.training.tensors import DTYPES


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_decoded_as_torch_does(name: str) -> None:
    decode, width = _decoder(name)
    dtype = DTYPES[name]
    codes = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    if width <= 2:
        codes = np.arange(256**width, dtype=f"<u{width}").view(np.uint8)
    if name == "BOOL":
        codes = codes % 2
    tensor = torch.from_numpy(codes.copy()).view(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else dtype
    found = decode(memoryview(codes.tobytes()))
    assert np.array_equal(found, tensor.to(wide).numpy(), equal_nan=dtype.is_floating_point or dtype.is_complex)


def far(a: object, b: object, kind: str) -> tuple[int, float]:
    names = {"<f4": "F32", "<f8": "F64", "<i8": "I64", "<u8": "U64", "|i1": "I8", "|b1": "BOOL", "<c8": "C64"}
    return tuple(distance(np.array(a, kind).tobytes(), names[kind], np.array(b, kind).tobytes(), names[kind]))


def test_distances() -> None:
    nan, inf = math.nan, math.inf
    assert far([1.0, 2.0, nan, inf, -inf], [1.0, 2.5, nan, inf, -inf], "<f4") == (1, 0.5)
    assert far([0.0, 1.0], [-0.0, 1.0], "<f8") == (0, 0.0), "other bits, the same values"
    assert far([inf], [1.0], "<f8") == (1, inf)
    differing, largest = far([nan, 5.0], [1.0, 1.0], "<f8")
    assert differing == 2 and math.isnan(largest)
    assert far([2**63 - 1, -(2**63)], [2**63 - 2, 2**63 - 1], "<i8") == (2, float(2**64 - 1))
    assert far([2**64 - 1], [0], "<u8") == (1, float(2**64 - 1))
    assert far([-128], [127], "|i1") == (1, 255.0) and far([True, False], [False, False], "|b1") == (1, 1.0)
    assert far([3 + 4j], [0], "<c8") == (1, 5.0)
    assert far([], [], "<f4") == (0, 0.0)
    ones, half = np.ones(3, "<f4").tobytes(), np.full(3, 0.5, "<f2").tobytes()
    assert distance(ones, "F32", half, "F16") == (3, 0.5), "of different dtypes too"


def test_long_tensors_are_compared_in_blocks() -> None:
    a = np.zeros((1 << 20) + 7, "<f4")
    b = a.copy()
    b[-1], b[0] = 3.0, 1.0
    assert distance(a.tobytes(), "F32", b.tobytes(), "F32") == (2, 3.0)
