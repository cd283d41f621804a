from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spotckpt.errors import Corrupt
from spotckpt.snapshot.pack import layout
from spotckpt.snapshot.part import TensorEntry
from spotckpt.training.capture import capture
from spotckpt.training.tensors import DTYPES, empty_tensor, why_not_storable
from tests.training.copied import copy_into
from tests.training.roundtrip import Snapshot, part_of, through_bytes, value_through_bytes


def raw(tensor: torch.Tensor) -> bytes:
    plain = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return plain.view(torch.uint8).numpy().tobytes()


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Any bytes at all, so NaN payloads, infinities and denormals too; booleans are 0 or 1."""
    size = torch.empty(shape, dtype=dtype).nbytes
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    if dtype == torch.bool:
        data %= 2
    return torch.from_numpy(data).view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    value = filled(shape, DTYPES[draw(st.sampled_from(sorted(DTYPES)))], draw(st.integers(0, 2**32 - 1)))
    how = draw(st.sampled_from(["as it is", "permuted", "sliced", "expanded", "stepped"]))
    if how == "permuted" and shape:
        value = value.permute(draw(st.permutations(range(len(shape)))))
    elif how == "sliced" and shape:
        value = value[1:]
    elif how == "expanded":
        value = value.unsqueeze(0).expand(3, *shape)
    elif how == "stepped" and shape:
        value = value[..., ::2]
    return value


@given(st.lists(tensors(), max_size=4))
@settings(max_examples=150, deadline=None)
def test_what_is_restored_is_what_was_captured(values: list[torch.Tensor]) -> None:
    found = value_through_bytes(values)
    for value, back in zip(values, found, strict=True):
        assert (back.dtype, back.shape) == (value.dtype, value.shape)
        assert raw(back) == raw(value)
        is_dense = value.numel() > 0 and torch.empty_like(value).stride() == value.stride()
        assert back.stride() == value.stride() or not is_dense


def test_memory_formats_are_kept() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    back = value_through_bytes(image)
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back, image)


def test_lazy_conjugates_and_negations_are_stored_as_what_they_mean() -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    assert value_through_bytes([value.conj(), value.conj().imag])[0].tolist() == [1 - 2j, 3 + 4j]
    assert value_through_bytes([value.conj(), value.conj().imag])[1].tolist() == [-2.0, 4.0]
    both = value_through_bytes([value, value.conj()])
    assert both[0].tolist() == value.tolist()
    assert both[1].tolist() == value.conj().tolist()


def test_safetensors_reads_the_same_bytes() -> None:
    state = {f"t{name}": filled((2, 3), dtype, 1) for name, dtype in DTYPES.items() if name not in ("C128", "F8_E8M0")}
    captured = capture({"box": dict(state)}, {})
    plan = layout(captured.specs)
    data = bytearray(plan.data_bytes)
    copy_into(captured, memoryview(data), plan)
    for key, value in safetensors.torch.load(plan.header + bytes(data)).items():
        assert raw(value) == raw(state[key.removeprefix("box/")])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.eye(3).to_sparse(), "layout"),
        (lambda: torch.empty(3, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "quint8"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.ones(3, requires_grad=True) * 2, "autograd graph"),
        (lambda: torch.ones(3).as_subclass(type("Mine", (torch.Tensor,), {})), "Mine"),
    ],
    ids=["sparse", "meta", "quantized", "nested", "graph", "subclass"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_what_cannot_be_stored_is_named(make: Callable[[], torch.Tensor], reason: str) -> None:
    assert reason in why_not_storable(make())


@pytest.mark.fault(70)
def test_forged_strides_are_refused_before_any_allocation() -> None:
    entry = TensorEntry("x", "F32", (2, 2), (1 << 50, 1), ())
    with pytest.raises(Corrupt, match="strides"):
        empty_tensor(entry, torch.device("cpu"))


def test_restored_values_share_memory_only_among_themselves() -> None:
    shared = torch.arange(4.0)
    tree, source = through_bytes({}, {"value": {"a": shared, "b": shared, "c": torch.arange(4.0)}})
    first, second = source.value(tree["run"]["value"]), source.value(tree["run"]["value"])
    assert first["a"] is first["b"]
    first["a"].fill_(9)
    assert first["c"].tolist() == second["a"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_numpy_arrays() -> None:
    values = [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10, dtype=np.int16)[::3],
        np.array(["a", "bcd"]),
        np.array(3.5, np.float16),
        np.array([1 + 2j]),
        np.zeros((0, 4), np.uint8),
    ]
    for value, back in zip(values, value_through_bytes(values), strict=True):
        assert (back.dtype, back.shape) == (value.dtype, value.shape)
        assert np.array_equal(back, value)
        assert back.flags.writeable
        assert back.flags.f_contiguous == (value.flags.f_contiguous or value.ndim < 2)


def test_torch_values_that_are_no_tensors() -> None:
    value = {"dtype": torch.bfloat16, "device": torch.device("cpu"), "size": torch.Size([2, 3])}
    back = value_through_bytes(value)
    assert back == value
    assert type(back["size"]) is torch.Size


def test_parameters_stay_parameters() -> None:
    values = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)]
    values.append(torch.ones(2, requires_grad=True))
    back = value_through_bytes(values)
    assert [type(one) for one in back] == [type(one) for one in values]
    assert [one.requires_grad for one in back] == [True, False, True]


@pytest.mark.parametrize(
    "node",
    [
        {"$tensor": 5},
        {"$tensor": "x"},
        {"$tensor": -1},
        {"$torch.dtype": "load"},
        {"$torch.dtype": "_C"},
        {"$torch.device": "nowhere"},
        {"$torch.Size": "no"},
        {"$uninitialized": "class"},
        {"$unheard": 1},
    ],
    ids=str,
)
def test_forged_tags_are_corrupt(node: dict[str, Any]) -> None:
    with pytest.raises(Corrupt):
        Snapshot(part_of((), b""), b"").value({"a": node})


def test_a_complex_number_need_not_lie_at_a_multiple_of_its_size() -> None:
    for others in range(4):
        values = [torch.ones((), dtype=torch.float64)] * others + [torch.full((5,), 2 - 3j, dtype=torch.complex128)]
        values = [value.clone() for value in values]
        assert all(torch.equal(a, b) for a, b in zip(values, value_through_bytes(values), strict=True))
