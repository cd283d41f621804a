"""Bytes of a snapshot land in the tensors that they are meant for, whatever these look like, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spotckpt.errors import Corrupt, MismatchError, SpotckptError
from spotckpt.snapshot.arrival import Piece
from spotckpt.snapshot.part import TensorEntry
from spotckpt.training.filling import Filling, blocks, is_plain, lands_directly
from spotckpt.training.restore import prepare
from spotckpt.training.tensors import DTYPES
from tests.training.roundtrip import Snapshot, through_bytes


class Watched(Snapshot):
    """Knows where the bytes were put."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot.part, snapshot.data)
        self.places: list[int] = []

    def read(self, pieces: Sequence[Piece], arrived: Callable[[Piece], None]) -> None:
        self.places += [np.frombuffer(piece.into, np.uint8).ctypes.data for piece in pieces]
        super().read(pieces, arrived)


def watched(**objects: object) -> tuple[dict[str, Any], Watched]:
    tree, snapshot = through_bytes(objects)
    return tree["objects"], Watched(snapshot)


def test_what_takes_bytes_as_they_are() -> None:
    plain = torch.zeros(4, 6)
    assert lands_directly(plain, torch.float32)
    assert lands_directly(plain[1:3], torch.float32)
    assert lands_directly(torch.nn.Parameter(plain), torch.float32)
    assert not lands_directly(plain, torch.float64)
    assert not lands_directly(plain.t(), torch.float32)
    assert not lands_directly(plain[:, ::2], torch.float32)
    assert not lands_directly(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.float32)
    assert not lands_directly(torch.zeros(2, dtype=torch.complex64).conj(), torch.complex64)
    assert is_plain("cpu", True, True)
    assert not any(is_plain(*not_so) for not_so in [("cuda", True, True), ("cpu", False, True), ("cpu", True, False)])


def test_bytes_go_straight_into_parameters_and_into_the_state_that_the_optimizer_keeps() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 5)).sum().backward()
    optimizer.step()
    saved, snapshot = watched(model=model, optimizer=optimizer)
    new = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    fresh = torch.optim.AdamW(new.parameters())
    filling = Filling(snapshot.part)
    loads = [prepare("model", new, saved["model"], filling), prepare("optimizer", fresh, saved["optimizer"], filling)]
    filling.read(snapshot)
    for load in loads:
        assert load() == ()
    state = [value for of_one in fresh.state_dict()["state"].values() for value in of_one.values()]
    assert {value.data_ptr() for value in [*new.state_dict().values(), *state]} == set(snapshot.places)
    old_state = [value for of_one in optimizer.state_dict()["state"].values() for value in of_one.values()]
    assert all(map(torch.equal, state, old_state))
    assert all(map(torch.equal, new.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 4, 5)], ids=str)
def test_every_dtype_and_shape_into_memory_of_every_kind(dtype: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    size = math.prod(shape) * DTYPES[dtype].itemsize
    data = torch.randint(0, 2 if dtype == "BOOL" else 256, (size,), dtype=torch.uint8, generator=generator)
    value = data.view(DTYPES[dtype]).view(shape) if size else torch.empty(shape, dtype=DTYPES[dtype])
    saved, snapshot = watched(it=value)
    inside = torch.zeros(size + 32, dtype=torch.uint8)[16 : 16 + size].view(DTYPES[dtype])
    lives = [torch.zeros(shape, dtype=DTYPES[dtype]), inside.view(shape)]
    if len(shape) == 4:
        lives.append(torch.zeros(shape, dtype=DTYPES[dtype]).to(memory_format=torch.channels_last))
        lives.append(torch.zeros((*shape[:3], 10), dtype=DTYPES[dtype])[..., ::2])
    for live in lives:
        snapshot.restore("it", live, saved["it"])
        assert live.contiguous().view(torch.uint8).equal(value.contiguous().view(torch.uint8)) if shape else True
        assert repr(live) == repr(value)


def test_memory_around_a_tensor_is_not_touched() -> None:
    memory = torch.full((10, 10), 7.0)
    saved, snapshot = watched(it=torch.zeros(3, 10), other=torch.zeros(10, 2))
    snapshot.restore("it", memory[2:5], saved["it"])
    snapshot.restore("other", memory[:, 8:], saved["other"])
    expected = torch.full((10, 10), 7.0)
    expected[2:5], expected[:, 8:] = 0.0, 0.0
    assert torch.equal(memory, expected)


def test_a_write_counts_as_one() -> None:
    saved, snapshot = watched(model=torch.nn.Linear(2, 1), table=torch.ones(3))
    model, table = torch.nn.Linear(2, 1), torch.zeros(3)
    before = model.weight._version, table._version
    loss = model(torch.ones(1, 2)).exp().sum()
    snapshot.restore("model", model, saved["model"])
    snapshot.restore("table", table, saved["table"])
    assert model.weight._version > before[0] and table._version > before[1]
    assert model.weight.requires_grad and model.weight.grad is None
    loss.backward()  # of weights of which nothing needs the old values


class Two(torch.nn.Module):
    """Two parameters, tied or not, or parts of one memory."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(a)
        self.b = self.a if b is a else torch.nn.Parameter(b)


def test_saved_tied_and_live_apart() -> None:
    one = torch.arange(6.0)
    saved, snapshot = watched(it=Two(one, one))
    for dtype in (torch.float32, torch.float64):
        live = Two(torch.zeros(6), torch.zeros(6, dtype=dtype))
        snapshot.restore("it", live, saved["it"])
        assert live.a.tolist() == live.b.tolist() == one.tolist()
        assert live.a.data_ptr() != live.b.data_ptr()


def test_saved_apart_and_live_tied_or_overlapping() -> None:
    saved, snapshot = watched(it=Two(torch.zeros(4), torch.ones(4)))
    memory = torch.full((6,), 9.0)
    for live in (Two(tied := torch.zeros(4), tied), Two(memory[:4], memory[2:])):
        snapshot.restore("it", live, saved["it"])
        assert live.b.tolist() == [1.0] * 4, "what is loaded last wins, as without spotckpt"
    assert memory.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_an_expanded_tensor_is_refused_as_torch_refuses_it() -> None:
    saved, snapshot = watched(it=Two(torch.zeros(4), torch.ones(4)))
    live = Two(torch.zeros(4), torch.zeros(4))
    live.b = torch.nn.Parameter(torch.zeros(1).expand(4))
    with pytest.raises(MismatchError, match="single memory location"):
        snapshot.restore("it", live, saved["it"])


class Doubling(torch.nn.Module):
    """Loads in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        state[prefix + "weight"] = state[prefix + "weight"] * 2
        super()._load_from_state_dict(state, prefix, *rest)


def swap(module: torch.nn.Module, state: Any, prefix: str, *rest: Any) -> None:
    state[f"{prefix}a"], state[f"{prefix}b"] = state[f"{prefix}b"], state[f"{prefix}a"]


def test_a_module_that_changes_what_it_loads_gets_a_state_of_its_own() -> None:
    saved, snapshot = watched(it=torch.nn.ModuleList([Doubling(), Two(torch.zeros(2), torch.ones(2))]))
    inner = Two(torch.full((2,), 5.0), torch.full((2,), 6.0))
    inner.register_load_state_dict_pre_hook(swap)
    live = torch.nn.ModuleList([Doubling(), inner])
    snapshot.restore("it", live, saved["it"])
    assert live[0].weight.tolist() == [2.0] * 3
    assert (inner.a.tolist(), inner.b.tolist()) == ([1.0] * 2, [0.0] * 2)


def test_what_does_not_fit_changes_none() -> None:
    model, optimizer_of = torch.nn.Linear(2, 1), torch.nn.Linear(2, 2)
    saved, snapshot = watched(model=model, optimizer=torch.optim.SGD([*optimizer_of.parameters()], 1.0))
    live = torch.nn.Linear(2, 1)
    before = live.weight.tolist()
    filling = Filling(snapshot.part)
    prepare("model", live, saved["model"], filling)
    with pytest.raises(MismatchError):
        prepare("optimizer", torch.optim.SGD([live.weight], 1.0), saved["optimizer"], filling)
    assert live.weight.tolist() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_byte_is_found_wherever_it_lands(dtype: torch.dtype) -> None:
    saved, snapshot = watched(it=torch.nn.Linear(50, 50))
    snapshot.data[1234] ^= 1
    with pytest.raises(Corrupt, match=r"rank-00000.safetensors: tensor it/weight does not match its digest"):
        snapshot.restore("it", torch.nn.Linear(50, 50).to(dtype), saved["it"])


def test_no_memory_is_no_damage() -> None:
    saved, snapshot = watched(it={"a": torch.ones(2)})
    (entry,) = snapshot.part.tensors
    huge = Snapshot(snapshot.part, b"")
    object.__setattr__(huge.part, "tensors", (entry._replace(shape=(1 << 47,)),))
    with pytest.raises(SpotckptError, match="no memory on cpu for tensor it/a") as caught:
        huge.value(saved["it"]["state"])
    assert not isinstance(caught.value, Corrupt)


SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@settings(deadline=None)
@given(SHAPES, st.integers(8, 200))
def test_blocks_cover_a_tensor_in_the_order_of_its_bytes(shape: tuple[int, ...], most: int) -> None:
    entry = TensorEntry("x", "F64", shape, None, ())
    values = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    at = 0
    for block in blocks(0, entry, most):
        assert (block.first, block.size_bytes) == (at, values[block.index].nbytes) and block.size_bytes <= most
        assert values[block.index].shape == block.shape
        assert values[block.index].flatten().tolist() == [
            float(k) for k in range(at // 8, (at + block.size_bytes) // 8)
        ]
        at += block.size_bytes
    assert at == values.nbytes


@settings(deadline=None)
@given(st.lists(st.tuples(SHAPES, st.sampled_from(["F32", "F64", "C128", "U8"])), max_size=6), st.integers(64, 600))
def test_through_small_buffers(rows: list[tuple[tuple[int, ...], str]], buffer_bytes: int) -> None:
    saved = [torch.randn(math.prod(shape)).abs().view(shape).to(DTYPES[dtype]) for shape, dtype in rows]
    _, snapshot = through_bytes({}, {"value": saved})
    order = {tuple(entry.name.split("/")): row for row, entry in enumerate(snapshot.part.tensors)}
    filling = Filling(snapshot.part, buffer_bytes=buffer_bytes)
    lives = []
    for number, value in enumerate(saved):
        wide = torch.zeros((*value.shape, 2), dtype=value.dtype)
        lives.append(wide[..., 0])
        assert filling.into(order["run", "value", str(number)], lives[-1])
    filling.read(snapshot)
    assert all(map(torch.equal, lives, saved))
