"""From GPUs to the slot: through a few pinned buffers and on a stream of its own, while the training goes on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from spotckpt.training.ring import Ring

BUFFER_BYTES = 32 << 20
NUM_BUFFERS = 4
_ALIGN_BYTES = 16  # what torch's copies of complex numbers need


class Piece(NamedTuple):
    """A part of a tensor whose elements are stored one after the other.

    Attributes:
        tensor: on the device.
        place: where it belongs, in bytes from the start of the data section.
    """

    tensor: torch.Tensor
    place: int


class Ticket(NamedTuple):
    """The end of what was issued to one device."""

    device: torch.device
    event: torch.cuda.Event


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured on this thread's stream: then nothing else may be asked of the device."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


class PinnedBuffers:
    """Copies from every GPU that a state lies on; the buffers stay for the next snapshot."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._buffers: list[torch.Tensor] = []

    def begin(self, devices: Iterable[torch.device]) -> None:
        """What is issued from here on comes after all that this thread, the loop's, has asked of its streams."""
        for device in devices:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._streams[device].wait_stream(torch.cuda.current_stream(device))

    def copy(
        self,
        tensors: Sequence[tuple[torch.Tensor, int]],
        base: int,
        *,
        given_up: Callable[[], bool],
        issued: Callable[[Sequence[Ticket]], None],
    ) -> None:
        """Copies tensors to their places (bytes from `base`, an address); returns when all bytes are there.

        `begin` must have been called with their devices. `issued` is called when all is under way.
        """
        devices = list(dict.fromkeys(tensor.device for tensor, _ in tensors))
        tickets: list[Ticket] = []
        if not devices:
            issued(tickets)
        for device in devices:
            loads = loads_of([(tensor, place) for tensor, place in tensors if tensor.device == device])

            def last(event: torch.cuda.Event | None, device: torch.device = device) -> None:
                assert event is not None
                tickets.append(Ticket(device, event))
                if len(tickets) == len(devices):
                    issued(tickets)

            self._ring(device, base).run(loads, given_up=given_up, issued=last)

    def _ring(self, device: torch.device, base: int) -> Ring[torch.Tensor, list[Piece], torch.cuda.Event]:
        while len(self._buffers) < NUM_BUFFERS:
            self._buffers.append(torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True))
        stream = self._streams[device]

        def fill(load: list[Piece], buffer: torch.Tensor) -> torch.cuda.Event:
            with torch.no_grad(), torch.cuda.stream(stream):
                for start, piece in placed(load):
                    tensor = piece.tensor
                    bytes_of = buffer[start : start + tensor.nbytes]
                    bytes_of.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(stream)
            return event

        def drain(buffer: torch.Tensor, load: list[Piece]) -> None:
            for start, piece in placed(load):
                ctypes.memmove(base + piece.place, buffer.data_ptr() + start, piece.tensor.nbytes)

        return Ring(self._buffers, fill=fill, wait=torch.cuda.Event.synchronize, drain=drain)


def wait_on_stream(tickets: Iterable[Ticket]) -> None:
    """Lets what this thread asks of its streams from here on come after the copies."""
    for device, event in tickets:
        torch.cuda.current_stream(device).wait_event(event)


def loads_of(tensors: Iterable[tuple[torch.Tensor, int]], *, limit: int = BUFFER_BYTES) -> Iterator[list[Piece]]:
    """Pieces in loads that fit into a buffer: a large tensor makes many, small ones share one."""
    load: list[Piece] = []
    used = 0
    for tensor, place in tensors:
        for piece in pieces_of(tensor, place, limit=limit):
            size = _aligned(piece.tensor.nbytes)
            if load and used + size > limit:
                yield load
                load, used = [], 0
            load.append(piece)
            used += size
    if load:
        yield load


def placed(load: Iterable[Piece]) -> Iterator[tuple[int, Piece]]:
    """Where each piece of a load lies in the buffer, in bytes."""
    start = 0
    for piece in load:
        yield start, piece
        start += _aligned(piece.tensor.nbytes)


def pieces_of(tensor: torch.Tensor, place: int, *, limit: int = BUFFER_BYTES) -> Iterator[Piece]:
    """Cuts a tensor so that no piece is longer than `limit` bytes."""
    if tensor.nbytes == 0:
        return
    if tensor.nbytes <= limit:
        yield Piece(tensor, place)
        return
    if tensor.is_contiguous():
        tensor = tensor.view(-1)
    size_of_one = tensor.nbytes // tensor.shape[0]
    for part in torch.split(tensor, max(1, limit // size_of_one)):
        inner = part[0] if part.nbytes > limit else part
        yield from pieces_of(inner, place, limit=limit)
        place += part.nbytes


def _aligned(size: int) -> int:
    return -(-size // _ALIGN_BYTES) * _ALIGN_BYTES
