"""The copy: the tensors of a capture into the memory of a slot.

While the training stands still its threads copy: torch's. Beside a training that goes on, what lies in CPU memory as it
is stored is moved by `memmove`, which waits for no lock of Python's and wakes none of torch's threads. Tensors on a GPU
go through pinned buffers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from spotckpt.snapshot.pack import Layout
from spotckpt.training.capture import Capture
from spotckpt.training.pinned import PinnedBuffers, Ticket
from spotckpt.training.tensors import Storable, write_tensor

LATE_BYTES = 64 << 10
"""A tensor on the CPU that is smaller is copied at the boundary: watching over it would cost more."""

_SHARED_BYTES = 256 << 10
"""From this size on torch's threads share a copy."""

_SLICE_BYTES = 64 << 20
_SAMPLE_BYTES = 32


class Copy:
    """One filling of a slot.

    Args:
        captured: whose tensors are read while it is copied.
        buffer: writable, at least `layout.data_bytes` long; the data section of the slot.
        layout: of `captured.specs`.
        pinned: for tensors on a GPU; what is copied of these is what the training has asked of its streams until now.
    """

    def __init__(self, captured: Capture, buffer: Any, layout: Layout, pinned: PinnedBuffers) -> None:
        self._tensors = captured.tensors
        self._offsets = layout.offsets
        self._buffer = buffer
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if layout.data_bytes else 0
        self._pinned = pinned
        pinned.begin({one.device for one in captured.tensors if isinstance(one, torch.Tensor) and one.is_cuda})

    def rows(self) -> range:
        """Every tensor's."""
        return range(len(self._tensors))

    def late(self, optimizers: Iterable[torch.optim.Optimizer]) -> list[int]:
        """The rows that nothing but a step of these optimizers changes, and that are worth copying meanwhile."""
        owned = _owned_by(optimizers)
        return [
            row
            for row, value in enumerate(self._tensors)
            if isinstance(value, torch.Tensor)
            and (value.device.type == "cuda" or (value.nbytes >= LATE_BYTES and _lies_as_stored(value)))
            and not value.is_inference()
            and (value.data_ptr(), value.nbytes) in owned
        ]

    def run(
        self,
        rows: Iterable[int],
        *,
        beside: bool = False,
        given_up: Callable[[], bool] = lambda: False,
        issued: Callable[[Sequence[Ticket]], None] = lambda tickets: None,
    ) -> None:
        """Copies; returns when all bytes are there.

        Args:
            rows: of the tensor table.
            beside: the training goes on meanwhile, with torch's threads.
            given_up: asked now and again; when it says yes, this returns early and the bytes are worth nothing.
            issued: called once everything is read, but for what a GPU still copies: that is over when it has passed
                the events it is called with.
        """
        on_gpu: list[tuple[torch.Tensor, int]] = []
        elsewhere = set()
        for row in rows:
            value, offset = self._tensors[row], self._offsets[row]
            if given_up():
                return
            if _lies_as_stored(value) and (beside or value.nbytes < _SHARED_BYTES):
                _move(self._base + offset, _address(value), value.nbytes, given_up)
            elif isinstance(value, torch.Tensor) and value.device.type == "cuda":
                on_gpu.append((value, offset))
            else:
                write_tensor(value, self._buffer, offset)
                if isinstance(value, torch.Tensor) and value.device.type != "cpu":
                    elsewhere.add(value.device)
        for device in elsewhere:
            torch.accelerator.synchronize(device) if hasattr(torch, "accelerator") else torch.cuda.synchronize(device)
        self._pinned.copy(on_gpu, self._base, given_up=given_up, issued=issued)

    def samples(self, rows: Iterable[int]) -> list[tuple[int, bytes, bytes]]:
        """What each tensor on the CPU begins and ends with now, for `stands`."""
        sampled = []
        for row in rows:
            value = self._tensors[row]
            if _lies_as_stored(value):
                sampled.append((row, *_ends(_address(value), value.nbytes)))
        return sampled

    def stands(self, samples: Iterable[tuple[int, bytes, bytes]]) -> bool:
        """Whether what was copied begins and ends as the tensors did then.

        Writes through `.data`, of numpy or of C count in no version counter; they change whole tensors.
        """
        return all(
            (first, last) == _ends(self._base + self._offsets[row], self._tensors[row].nbytes)
            for row, first, last in samples
        )

    def versions(self, rows: Iterable[int]) -> list[int]:
        """How often each tensor was written to in place, as far as torch knows."""
        return [self._tensors[row]._version for row in rows]  # type: ignore[union-attr]  # late rows are tensors


def _owned_by(optimizers: Iterable[torch.optim.Optimizer]) -> set[tuple[int, int]]:
    """Where the parameters and the states of the optimizers lie; a learning rate that is a tensor is a scheduler's."""
    owned: set[tuple[int, int]] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            owned.update((one.data_ptr(), one.nbytes) for one in group["params"] if isinstance(one, torch.Tensor))
        for state in optimizer.state.values():
            values = state.values() if isinstance(state, dict) else ()
            owned.update((one.data_ptr(), one.nbytes) for one in values if isinstance(one, torch.Tensor))
    return owned


def _lies_as_stored(value: Storable) -> bool:
    """Whether the bytes in CPU memory are those of the pack, in that order."""
    if isinstance(value, np.ndarray):
        return bool(value.flags.c_contiguous)
    return value.device.type == "cpu" and value.is_contiguous() and not value.is_conj() and not value.is_neg()


def _address(value: Storable) -> int:
    if isinstance(value, np.ndarray):
        return int(value.__array_interface__["data"][0])
    return value.data_ptr()


def _move(target: int, source: int, size: int, given_up: Callable[[], bool]) -> None:
    for start in range(0, size, _SLICE_BYTES):
        if start and given_up():
            return
        ctypes.memmove(target + start, source + start, min(_SLICE_BYTES, size - start))


def _ends(address: int, size: int) -> tuple[bytes, bytes]:
    length = min(_SAMPLE_BYTES, size)
    return ctypes.string_at(address, length), ctypes.string_at(address + size - length, length)
