"""The way from a GPU to the slot, without a GPU: what is issued when, and when a buffer is used again."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from spotckpt.training.pinned import loads_of, pieces_of, placed
from spotckpt.training.ring import Ring


class Device:
    """Copies by itself, in the order of what it was asked for; a buffer holds its bytes only once it was waited for."""

    def __init__(self, num_buffers: int) -> None:
        self.buffers = [[""] for _ in range(num_buffers)]
        self.asked: list[str] = []
        self.arrived: list[str] = []
        self.most_under_way = 0
        self.fails_at = ""
        self._tickets: list[tuple[str, list[str]]] = []
        self._done = 0
        self.ring = Ring(self.buffers, fill=self.fill, wait=self.wait, drain=self.drain)

    def fill(self, load: str, buffer: list[str]) -> int:
        if load == self.fails_at:
            raise RuntimeError("device-side assert")
        assert buffer[0] == "", "it is filled again before it was emptied"
        buffer[0] = "?"
        self.asked.append(load)
        self._tickets.append((load, buffer))
        self.most_under_way = max(self.most_under_way, sum(one[0] != "" for one in self.buffers))
        return len(self._tickets) - 1

    def wait(self, ticket: int) -> None:
        while self._done <= ticket:
            load, buffer = self._tickets[self._done]
            buffer[0] = load
            self._done += 1

    def drain(self, buffer: list[str], load: str) -> None:
        assert buffer[0] == load, "it is read before the device was there"
        self.arrived.append(load)
        buffer[0] = ""


def names(number: int) -> list[str]:
    return [f"load {index}" for index in range(number)]


@pytest.mark.parametrize(("num_loads", "num_buffers"), [(1, 1), (3, 1), (10, 3), (3, 4)])
def test_all_arrive_in_order_through_few_buffers(num_loads: int, num_buffers: int) -> None:
    device = Device(num_buffers)
    issued: list[tuple[int, int | None]] = []
    device.ring.run(
        names(num_loads),
        given_up=lambda: False,
        issued=lambda ticket: issued.append((len(device.arrived), ticket)),
    )
    assert device.asked == device.arrived == names(num_loads)
    assert device.most_under_way == min(num_loads, num_buffers)
    # told before the last ones were emptied: the training goes on while they are
    assert issued == [(max(0, num_loads - num_buffers), num_loads - 1)]


def test_an_error_in_the_middle_leaves_the_buffers_usable() -> None:
    device = Device(2)
    device.fails_at = "load 3"
    with pytest.raises(RuntimeError, match="device-side"):
        device.ring.run(names(6), given_up=lambda: False, issued=lambda ticket: pytest.fail("it is not all issued"))
    for buffer in device.buffers:
        assert buffer[0] != "?", "the device still writes to it"
        buffer[0] = ""
    device.fails_at = ""
    device.arrived.clear()
    device.ring.run(names(4), given_up=lambda: False, issued=lambda ticket: None)
    assert device.arrived == names(4)


def test_giving_up_stops_before_the_next_load() -> None:
    device = Device(2)
    asked = itertools.count()
    device.ring.run(names(9), given_up=lambda: next(asked) == 4, issued=lambda ticket: pytest.fail("not all is issued"))
    assert device.asked == names(4)


def test_pieces_fill_their_tensor_and_no_load_is_too_long() -> None:
    chance = random.Random(5)
    tensors, place = [], 0
    for shape in [(), (3,), (1000,), (2, 3, 70), (5, 300), (4, 200, 1), (0, 4), (1, 1, 5000)]:
        tensor = torch.randn(shape)
        if chance.random() < 0.5 and tensor.dim() > 1:
            tensor = tensor.transpose(0, -1)
        tensors.append((tensor, place))
        place += tensor.nbytes
    tensors.append((torch.randn(6, dtype=torch.complex128), place))
    total = place + 96
    for limit in (16, 64, 1000, 1 << 20):
        found = bytearray(total)
        for load in loads_of(tensors, limit=limit):
            buffer = torch.zeros(limit, dtype=torch.uint8)
            for start, piece in placed(load):
                size = piece.tensor.nbytes
                assert start + size <= limit
                view = buffer[start : start + size].view(piece.tensor.dtype).view(piece.tensor.shape)
                view.copy_(piece.tensor)
                found[piece.place : piece.place + size] = bytes(buffer[start : start + size].numpy())
        expected = b"".join(
            bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy()) for tensor, _ in tensors if tensor.nbytes
        )
        assert bytes(found) == expected, f"limit {limit}"
    assert [piece.tensor.nbytes for piece in pieces_of(torch.zeros(10), 0, limit=16)] == [16, 16, 8]
