from __future__ import annotations

import gc
import random
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from spotckpt.errors import EncodeError, UsageError
from spotckpt.snapshot.pack import layout
from spotckpt.training.capture import capture, check_encodable, check_object
from tests.training.copied import copy_into
from tests.training.roundtrip import value_through_bytes


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = torch.nn.BatchNorm1d(4)


def stepped() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_captured_tensor_is_gone_with_the_capture() -> None:
    """A `state_dict()` may return copies; waiting for the garbage collector they would pile up, one each snapshot."""
    copied = torch.ones(3)
    kept = weakref.ref(copied)
    captured = capture({}, {"vars": {"copied": copied, "list": [copied[:1]], "nested": (OrderedDict(a=copied),)}})
    del copied
    assert kept() is not None
    del captured
    assert kept() is None


@pytest.mark.usefixtures("no_collector")
def test_a_decoded_value_is_gone_with_its_last_name() -> None:
    value = value_through_bytes({"a": [torch.ones(3)], "b": {1: (torch.zeros(1),)}})
    kept = weakref.ref(value["a"][0])
    del value
    assert kept() is None


def test_tensors_have_readable_unique_names() -> None:
    model, optimizer = stepped()
    captured = capture(
        {"model": model, "optimizer": optimizer},
        {"vars": {"ema": {"a b": torch.ones(1), "x": [torch.zeros(1)]}}, "rng": {"torch": np.zeros(3, np.uint8)}},
    )
    assert captured.names == [
        "model/weight",
        "model/bias",
        "optimizer/state/0/step",
        "optimizer/state/0/exp_avg",
        "optimizer/state/0/exp_avg_sq",
        "optimizer/state/1/step",
        "optimizer/state/1/exp_avg",
        "optimizer/state/1/exp_avg_sq",
        "run/vars/ema/a b",
        "run/vars/ema/x/0",
        "run/rng/torch",
    ]


def test_names_that_collide_stay_unique() -> None:
    captured = capture({"a": {"b": {"c": torch.ones(1)}, "b/c": torch.ones(1), "b/c#2": torch.ones(1)}}, {})
    assert len(set(captured.names)) == 3
    layout(captured.specs)


def test_nothing_is_copied_and_tied_tensors_are_there_once() -> None:
    model = Tied()
    captured = capture({"model": model}, {})
    assert captured.names.count("model/embed.weight") == 1
    assert "model/head.weight" not in captured.names
    assert captured.tensors[0].data_ptr() == model.embed.weight.data_ptr()
    assert captured.tree["objects"]["model"]["kind"] == "module"


def test_the_copy_is_of_the_moment() -> None:
    value = torch.zeros(1000)
    captured = capture({}, {"value": value})
    plan = layout(captured.specs)
    data = bytearray(plan.data_bytes)
    value.fill_(1)
    copy_into(captured, memoryview(data), plan)
    value.fill_(2)
    assert set(np.frombuffer(data, np.float32)) == {1.0}
    assert captured.num_bytes == plan.data_bytes == 4000


def test_only_its_own_place_is_written() -> None:
    captured = capture({}, {"a": torch.ones(3, dtype=torch.uint8), "b": torch.full((2,), 2.0)})
    plan = layout(captured.specs)
    data = bytearray(b"\xaa" * (plan.data_bytes + 16))
    copy_into(captured, memoryview(data), plan)
    assert data[plan.data_bytes :] == b"\xaa" * 16


def test_the_metadata_of_a_module_travels() -> None:
    assert value_through_bytes(Tied().state_dict())._metadata["norm"] == {"version": 2}


@pytest.mark.fault(11)
def test_the_users_error_comes_out_unchanged() -> None:
    class Broken:
        def state_dict(self) -> dict[str, Any]:
            raise LookupError("mine")

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    with pytest.raises(LookupError, match="mine"):
        capture({"broken": Broken()}, {})


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"tokenizer": {"fn": len}}, r"vars\.tokenizer\.fn"),
        ({"sparse": torch.eye(2).to_sparse()}, r"vars\.sparse: tensor of the layout"),
        ({"loss": torch.ones(1, requires_grad=True) * 2}, r"vars\.loss: .*autograd graph.*detach"),
        ({"objects": np.array([object()])}, r"vars\.objects"),
        ({"table": np.zeros(2, [("a", int)])}, r"vars\.table"),
    ],
    ids=["function", "sparse", "graph", "object array", "structured array"],
)
def test_what_cannot_be_held_is_refused_by_its_path(value: Any, path: str) -> None:
    with pytest.raises(EncodeError, match=path):
        check_encodable(value, path="vars")
    with pytest.raises(EncodeError, match=path):
        capture({}, {"vars": value})


@pytest.mark.parametrize("value", [3, 2.5, "text", (1, 2), None, frozenset()], ids=str)
def test_values_that_cannot_be_restored_in_place_point_to_vars(value: object) -> None:
    with pytest.raises(UsageError, match=r"run\.vars"):
        check_object("patience", value)


def test_what_has_no_state_dict_is_refused() -> None:
    with pytest.raises(UsageError, match="has no state_dict"):
        check_object("thing", object())


def test_what_can_be_tracked() -> None:
    model, optimizer = stepped()
    things: dict[str, object] = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
        "scaler": torch.amp.GradScaler("cpu"),
        "generators": torch.Generator(),
        "numpy": np.random.default_rng(1),
        "python": random.Random(1),
        "table": {"a": [1]},
        "ordered": OrderedDict(a=1),
        "list": [1, 2],
        "set": {1},
        "tensor": torch.ones(2),
        "array": np.ones(2),
        "activation": torch.nn.ReLU(),
    }
    assert [check_object(name, thing) for name, thing in things.items()] == [None] * len(things)


def test_an_empty_state_warns() -> None:
    class Metric(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(()), persistent=False)

    class Stateful:
        def __init__(self) -> None:
            self.count = 3

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    for thing in (Metric(), Stateful()):
        warning = check_object("metric", thing)
        assert warning is not None
        assert "state_dict() of metric" in warning
