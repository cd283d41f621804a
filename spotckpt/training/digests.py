"""Digests of whatever a training holds, for a probe: equal bytes, equal digest. Nothing is changed or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from spotckpt.training.rng import GENERATOR_TYPES, capture_generator

SIMPLE = (type(None), bool, int, float, complex, str, bytes, np.generic)

_HEX_DIGITS = 16
_SAMPLED_BYTES = 16 << 20
_SAMPLE_BYTES = 64 << 10
_NUM_SAMPLES = 256
_MAX_DEPTH = 8


def digest(value: object) -> str:
    """Of numbers, texts, arrays, tensors, generators, and of containers of these; of others their type."""
    hasher = blake3()
    _feed(hasher, value, _MAX_DEPTH)
    return hasher.hexdigest()[:_HEX_DIGITS]


def magnitude(tensor: torch.Tensor | np.ndarray[Any, Any]) -> float | None:
    """The sum of magnitudes, which tells how large a difference is; None for what are no floating point numbers."""
    if isinstance(tensor, np.ndarray):
        return float(np.abs(tensor.astype(np.float64)).sum()) if tensor.dtype.kind == "f" else None
    if not tensor.is_floating_point() or not _is_plain(tensor):
        return None
    return float(tensor.detach().abs().sum(dtype=torch.float64).item())


def tensor_digest(tensor: torch.Tensor, *, sampled: bool = False) -> str:
    """Of dtype, shape and bytes.

    Args:
        tensor: on any device.
        sampled: a large one is only looked at in places.
    """
    hasher = blake3()
    _feed_tensor(hasher, tensor, sampled=sampled)
    return hasher.hexdigest()[:_HEX_DIGITS]


def _feed(hasher: blake3, value: object, depth: int) -> None:
    hasher.update(f"<{type(value).__name__}>".encode())
    if isinstance(value, torch.Tensor):
        _feed_tensor(hasher, value, sampled=False)
    elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, SIMPLE):
        hasher.update(repr(value).encode(errors="surrogatepass"))
    elif isinstance(value, GENERATOR_TYPES):
        _feed(hasher, capture_generator(value), depth)
    elif depth:
        _feed_parts(hasher, value, depth - 1)


def _feed_parts(hasher: blake3, value: object, depth: int) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _feed(hasher, key, depth)
            _feed(hasher, part, depth)
    elif isinstance(value, Set):
        for text in sorted(map(repr, value)):
            hasher.update(text.encode(errors="surrogatepass"))
    elif isinstance(value, list | tuple):
        for part in value:
            _feed(hasher, part, depth)
    elif hasattr(value, "__dict__"):
        _feed(hasher, vars(value), depth)


def _feed_tensor(hasher: blake3, tensor: torch.Tensor, *, sampled: bool) -> None:
    hasher.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if not _is_plain(tensor):
        return
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
    if sampled and flat.numel() > _SAMPLED_BYTES:
        step = flat.numel() // _NUM_SAMPLES
        flat = torch.cat([flat[start : start + _SAMPLE_BYTES] for start in range(0, flat.numel(), step)])
    hasher.update(flat.cpu().numpy().data)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
