"""Tensors as bytes: which can be stored, under which dtype name, and back.

The bytes of a tensor are its elements in logical row-major order. How a dense tensor lay in memory (channels-last,
transposed) is told by its strides and given back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from spotckpt.errors import Corrupt
from spotckpt.snapshot.part import TensorEntry
from spotckpt.snapshot.tree import ARRAY_DTYPES

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "C128": torch.complex128,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
"""Name in the tensor table → dtype."""
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""The inverse of `DTYPES`."""

_ARRAY_TYPES = {name: text for text, name in ARRAY_DTYPES.items()}

PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})
"""Of these exact types are the tensors that can be stored."""

Storable = torch.Tensor | np.ndarray[Any, Any]


def why_not_storable(tensor: torch.Tensor) -> str:
    """What keeps a tensor from being stored; empty when nothing does."""
    if _is_plain(tensor):
        return ""
    reasons = (
        (tensor.is_nested, "nested tensor"),
        (tensor.layout != torch.strided, f"tensor of the layout {tensor.layout}"),
        (tensor.device.type == "meta", "tensor on the meta device, which holds no values"),
        (type(tensor) not in PLAIN_TYPES, f"tensor of the type {_name(type(tensor))}"),
        (tensor.dtype not in DTYPE_NAMES, f"tensor of {tensor.dtype}"),
        (tensor.grad_fn is not None, "tensor that is part of an autograd graph"),
    )
    return next((reason for holds, reason in reasons if holds), "")


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether none of the reasons holds: of thousands of tensors, hardly one is asked further."""
    return (
        type(tensor) in PLAIN_TYPES
        and tensor.layout is torch.strided
        and tensor.dtype in DTYPE_NAMES
        and tensor.grad_fn is None
        and not tensor.is_meta
        and not tensor.is_nested
    )


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def dtype_name(value: Storable) -> str:
    """The name in the tensor table."""
    return DTYPE_NAMES[value.dtype] if isinstance(value, torch.Tensor) else ARRAY_DTYPES[value.dtype.str]


def memory_strides(value: Storable) -> tuple[int, ...] | None:
    """Strides in elements of a tensor that is dense but not plainly row-major; None otherwise."""
    if not isinstance(value, torch.Tensor):
        return None
    # torch calls a tensor contiguous too whose axes of one element have any stride
    if value.is_contiguous() and 1 not in value.shape:
        return None
    strides = tuple(value.stride())
    if strides == _row_major(value.shape) or not _is_dense(value.shape, strides):
        return None
    return strides


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(max(side, 1) for side in shape[axis + 1 :]) for axis in range(len(shape)))


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill their memory without holes or overlaps."""
    expected = 1
    for stride, side in sorted((stride, side) for stride, side in zip(strides, shape, strict=True) if side != 1):
        if stride != expected:
            return False
        expected *= side
    return expected > 0


def write_tensor(value: Storable, buffer: Any, offset: int) -> None:
    """Copies the elements in row-major order into `buffer` from `offset` on; from CUDA perhaps not at once."""
    size = value.nbytes
    if size == 0:
        return
    place = torch.frombuffer(buffer, dtype=torch.uint8, offset=offset, count=size)
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.dtype == torch.complex128:  # a pack aligns it to 8 bytes, torch's copy needs 16 and crashes without
            value = torch.view_as_real(value)
        place.view(value.dtype).view(value.shape).copy_(value, non_blocking=True)
    else:
        place.numpy().view(value.dtype).reshape(value.shape)[...] = value


def tensor_view(buffer: Any, entry: TensorEntry) -> torch.Tensor:
    """The tensor in a buffer of its length, row-major, sharing the buffer's memory."""
    dtype = DTYPES[entry.dtype]
    if entry.size_bytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).view(entry.shape)


def empty_tensor(entry: TensorEntry, device: torch.device) -> torch.Tensor:
    """Memory for a tensor, laid out as it was when captured.

    Raises:
        Corrupt: the strides do not fit the entry.
    """
    dtype = DTYPES[entry.dtype]
    if entry.stride is None or not entry.size_bytes:
        return torch.empty(entry.shape, dtype=dtype, device=device)
    # Checked before the allocation: a forged stride could ask for any amount of memory.
    if not _is_dense(entry.shape, entry.stride):
        raise Corrupt(
            f"tensor {entry.name}: strides {list(entry.stride)} do not fit its shape", hint="use another snapshot"
        )
    return torch.empty_strided(entry.shape, entry.stride, dtype=dtype, device=device)


def empty_array(entry: TensorEntry) -> np.ndarray[Any, Any]:
    """Memory for an array, C-contiguous.

    Raises:
        Corrupt: numpy has no such dtype.
    """
    if entry.dtype not in _ARRAY_TYPES:
        raise Corrupt(f"tensor {entry.name}: {entry.dtype} is no dtype of an array", hint="use another snapshot")
    return np.empty(entry.shape, _ARRAY_TYPES[entry.dtype])


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a dense row-major tensor on the CPU, writable; it keeps the tensor's memory alive."""
    if not tensor.nbytes:
        return memoryview(bytearray())
    # not reshape: a single element may have any stride
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data
