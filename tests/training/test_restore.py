from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spotckpt.errors import MismatchError, UsageError
from spotckpt.training.restore import tensor_indices
from tests.training.roundtrip import through_bytes


def move(saved: object, into: object, **options: Any) -> tuple[str, ...]:
    """Captures one object and restores it into another."""
    tree, source = through_bytes({"it": saved})
    return source.restore("it", into, tree["objects"]["it"], **options)


class Net(torch.nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, width)
        self.norm = torch.nn.BatchNorm1d(width)
        self.last = torch.nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def net(seed: int, width: int = 4) -> Net:
    torch.manual_seed(seed)
    return Net(width)


class Wrapper(torch.nn.Module):
    """As DDP does it: the model is `self.module`."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_module_in_place() -> None:
    into = net(2)
    before = [parameter.data_ptr() for parameter in into.parameters()]
    assert move(net(1), into) == ()
    assert same(into, net(1))
    assert [parameter.data_ptr() for parameter in into.parameters()] == before


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (lambda: Wrapper(net(1)), lambda: net(2)),
        (lambda: net(1), lambda: Wrapper(net(2))),
        (lambda: torch.compile(net(1), backend="eager"), lambda: net(2)),
        (lambda: net(1), lambda: torch.compile(Wrapper(net(2)), backend="eager")),
        (
            lambda: torch.compile(Wrapper(net(1)), backend="eager"),
            lambda: Wrapper(torch.compile(net(2), backend="eager")),
        ),
    ],
)
def test_prefixes_of_wrappers_do_not_matter(saved: Callable[[], Any], live: Callable[[], Any]) -> None:
    into = live()
    move(saved(), into)
    assert [value.tolist() for value in into.state_dict().values()] == [
        value.tolist() for value in net(1).state_dict().values()
    ]


def test_a_module_that_does_not_fit_is_left_alone() -> None:
    into = net(2, width=5)
    with pytest.raises(
        MismatchError, match=r"first\.weight: \(4, 3\) in the snapshot, \(5, 3\) in the model.*strict=Fal"
    ):
        move(net(1), into)
    assert same(into, net(2, width=5))
    into = torch.nn.Sequential(net(2))
    with pytest.raises(
        MismatchError, match=r"not in the snapshot: 0\.first\.weight; .*not in the model: first\.weight"
    ):
        move(net(1), into)


def test_long_lists_of_differences_are_cut() -> None:
    big = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(30)))
    with pytest.raises(MismatchError) as caught:
        move(big, torch.nn.Linear(1, 1))
    assert caught.value.message.count("not in the model") == 10
    assert "and 50 more" in caught.value.message


def test_without_strict_the_rest_is_loaded_and_listed() -> None:
    into = net(2, width=4)
    into.last = torch.nn.Linear(4, 7)
    into.extra = torch.nn.Linear(1, 1)
    lines = move(net(1), into, strict=False)
    assert torch.equal(into.first.weight, net(1).first.weight)
    assert "not in the snapshot: extra.weight" in lines
    assert "shape of last.weight: (2, 4) in the snapshot, (7, 4) in the model" in lines
    assert len(lines) == 4


def test_a_conversion_of_dtype_is_said() -> None:
    into = torch.nn.Linear(2, 2).to(torch.bfloat16)
    lines = move(torch.nn.Linear(2, 2), into)
    assert lines == (
        "dtype of weight: converted from torch.float32 to torch.bfloat16",
        "dtype of bias: converted from torch.float32 to torch.bfloat16",
    )


def test_tied_weights_stay_tied() -> None:
    def tied(seed: int) -> torch.nn.Module:
        model = torch.nn.Sequential(net(seed).last, net(seed + 5).last)
        model[1].weight = model[0].weight
        return model

    into = tied(2)
    move(tied(1), into)
    assert into[1].weight is into[0].weight
    assert same(into, tied(1))


def test_lazy_modules() -> None:
    into = torch.nn.LazyLinear(2)
    move(torch.nn.Linear(3, 2), into)
    assert into.weight.shape == (2, 3)
    unborn = torch.nn.LazyLinear(2)
    move(torch.nn.LazyLinear(2), unborn)
    with pytest.raises(MismatchError, match="uninitialized"):
        move(torch.nn.LazyLinear(2), torch.nn.Linear(3, 2))


def test_averaged_copies() -> None:
    def averaged(seed: int) -> AveragedModel:
        ema = AveragedModel(net(seed), multi_avg_fn=get_ema_multi_avg_fn(0.9))
        ema.update_parameters(net(seed + 1))
        ema.update_parameters(net(seed + 2))
        return ema

    into = averaged(10)
    move(averaged(1), into)
    assert same(into, averaged(1))
    clone = copy.deepcopy(net(5))
    move(net(1), clone)
    assert same(clone, net(1))


def test_extra_state_is_owned_by_the_module() -> None:
    class Extra(torch.nn.Module):
        kept: Any = torch.ones(2)

        def get_extra_state(self) -> Any:
            return {"kept": self.kept}

        def set_extra_state(self, state: Any) -> None:
            self.kept = state["kept"]

    tree, source = through_bytes({"it": Extra()})
    one, other = Extra(), Extra()
    source.restore("it", one, tree["objects"]["it"])
    source.restore("it", other, tree["objects"]["it"])
    one.kept.fill_(5)
    assert other.kept.tolist() == [1.0, 1.0]


def trained(
    kind: Callable[..., torch.optim.Optimizer], *, steps: int = 3, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = torch.nn.Linear(3, 2).to(dtype)
    optimizer = kind(model.parameters(), **options)
    for number in range(steps):
        take_step(model, optimizer, number)
    return model, optimizer


def take_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.full((1, 3), number + 1.0, dtype=next(model.parameters()).dtype)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
    (torch.optim.AdamW, {"lr": torch.tensor(0.01), "capturable": False}),
    (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (torch.optim.RMSprop, {"lr": 0.01}),
    (torch.optim.Adagrad, {"lr": 0.01}),
    (torch.optim.Rprop, {"lr": 0.01}),
    (torch.optim.LBFGS, {"lr": 0.01, "max_iter": 3}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda one: getattr(one, "__name__", ""))
def test_optimizers_go_on_as_if_nothing_had_happened(kind: Any, options: dict[str, Any]) -> None:
    expected, optimizer = trained(kind, steps=5, **options)
    model, optimizer = trained(kind, steps=3, **options)
    new_model, new_optimizer = trained(kind, steps=0, **options)
    tree, source = through_bytes({"optimizer": optimizer, "model": model})
    source.restore("optimizer", new_optimizer, tree["objects"]["optimizer"])
    source.restore("model", new_model, tree["objects"]["model"])
    for number in (3, 4):
        take_step(new_model, new_optimizer, number)
    assert same(new_model, expected)


def test_optimizer_state_keeps_its_dtype() -> None:
    _, optimizer = trained(torch.optim.AdamW, dtype=torch.bfloat16)
    for state in optimizer.state.values():
        state["exp_avg"] = torch.full_like(state["exp_avg"], 1 / 3, dtype=torch.float32)
    _, into = trained(torch.optim.AdamW, steps=0, dtype=torch.bfloat16)
    move(optimizer, into)
    for state in into.state.values():
        assert state["exp_avg"].dtype == torch.float32
        assert set(state["exp_avg"].flatten().tolist()) == {torch.tensor(1 / 3).item()}
        assert state["exp_avg_sq"].dtype == torch.bfloat16


def test_optimizer_state_is_not_shared_between_two_restores() -> None:
    _, optimizer = trained(torch.optim.AdamW)
    tree, source = through_bytes({"it": optimizer})
    model, one = trained(torch.optim.AdamW, steps=0)
    _, other = trained(torch.optim.AdamW, steps=0)
    for into in (one, other):
        source.restore("it", into, tree["objects"]["it"])
    before = [state["exp_avg"].clone() for state in other.state.values()]
    take_step(model, one, 3)
    assert all(torch.equal(a, state["exp_avg"]) for a, state in zip(before, other.state.values(), strict=True))


def test_override_keeps_the_callers_settings() -> None:
    _, optimizer = trained(torch.optim.SGD, lr=0.5, momentum=0.9)
    _, into = trained(torch.optim.SGD, steps=0, lr=0.1, momentum=0.1)
    move(optimizer, into, override=["lr"])
    assert (into.param_groups[0]["lr"], into.param_groups[0]["momentum"]) == (0.1, 0.9)
    with pytest.raises(UsageError, match="no such setting"):
        move(optimizer, into, override=["learning_rate"])


def test_an_optimizer_over_other_parameters_is_refused() -> None:
    _, optimizer = trained(torch.optim.AdamW)
    more = torch.optim.AdamW(net(1).parameters())
    with pytest.raises(MismatchError, match=r"1 parameter group\(s\) of \[2\] .* has 1 of \[6\]"):
        move(optimizer, more)
    other_shapes = torch.optim.AdamW(torch.nn.Linear(4, 2).parameters())
    with pytest.raises(MismatchError, match=r"exp_avg of parameter 0 has the shape \(2, 3\)"):
        move(optimizer, other_shapes)
    assert other_shapes.state == {}


def schedulers(optimizer: torch.optim.Optimizer) -> list[Any]:
    schedule = torch.optim.lr_scheduler
    return [
        schedule.StepLR(optimizer, 2),
        schedule.OneCycleLR(optimizer, 0.1, total_steps=20),
        schedule.CosineAnnealingWarmRestarts(optimizer, 3),
        schedule.SequentialLR(
            optimizer, [schedule.LinearLR(optimizer), schedule.ExponentialLR(optimizer, 0.9)], milestones=[2]
        ),
        schedule.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    ]


@pytest.mark.parametrize("index", range(5))
def test_schedulers_are_never_off_by_one(index: int) -> None:
    def make() -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        return optimizer, schedulers(optimizer)[index] if index != 3 else schedulers(optimizer)[3]

    def go_on(optimizer: torch.optim.Optimizer, scheduler: Any, times: int) -> list[float]:
        rates = []
        for _ in range(times):
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    torch.manual_seed(0)
    optimizer, scheduler = make()
    expected = go_on(optimizer, scheduler, 8)
    optimizer, scheduler = make()
    go_on(optimizer, scheduler, 3)
    tree, source = through_bytes({"optimizer": optimizer, "scheduler": scheduler})
    optimizer, scheduler = make()
    source.restore("optimizer", optimizer, tree["objects"]["optimizer"])
    source.restore("scheduler", scheduler, tree["objects"]["scheduler"])
    optimizer._opt_called = True
    assert go_on(optimizer, scheduler, 5) == expected[3:]


def test_plateau_scheduler_and_override_of_its_keys() -> None:
    def make(patience: int) -> Any:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=patience)

    saved, into = make(3), make(9)
    for value in (1.0, 2.0, math.nan):
        saved.step(value)
    move(saved, into, override=["patience"])
    assert (into.num_bad_epochs, into.best, into.patience) == (saved.num_bad_epochs, saved.best, 9)
    with pytest.raises(UsageError, match="has no 'nothing'"):
        move(saved, into, override=["nothing"])


def test_a_scaler() -> None:
    saved, into = torch.amp.GradScaler("cpu", init_scale=8.0), torch.amp.GradScaler("cpu")
    move(saved, into)
    assert into.state_dict() == saved.state_dict()


@pytest.mark.parametrize(
    ("saved", "into", "draw"),
    [
        (np.random.default_rng(1), np.random.default_rng(2), lambda one: one.random()),
        (random.Random(1), random.Random(2), lambda one: one.random()),
        (torch.Generator().manual_seed(1), torch.Generator(), lambda one: torch.rand(1, generator=one).item()),
        (np.random.RandomState(1), np.random.RandomState(2), lambda one: one.random()),
    ],
    ids=["numpy", "python", "torch", "numpy legacy"],
)
def test_generators(saved: Any, into: Any, draw: Callable[[Any], float]) -> None:
    move(saved, into)
    assert draw(into) == draw(saved)


def test_generators_of_another_kind_are_refused() -> None:
    with pytest.raises(MismatchError, match="it: a state of a python generator does not fit a numpy one"):
        move(random.Random(1), np.random.default_rng(1))
    with pytest.raises(MismatchError, match="must be for a MT19937"):
        move(np.random.Generator(np.random.PCG64(1)), np.random.Generator(np.random.MT19937(1)))


def test_containers_and_values_are_filled_in_place() -> None:
    pairs: Sequence[tuple[Any, Any]] = [
        ({"a": 1, 2: (3, 4)}, {"b": 9}),
        ([1, {"x": 2}], []),
        ({1, 2}, {9}),
    ]
    for saved, into in pairs:
        move(saved, into)
        assert into == saved
    tensor, array = torch.zeros(2), np.zeros(2)
    move(torch.ones(2), tensor)
    move(np.ones(2), array)
    assert tensor.tolist() == array.tolist() == [1.0, 1.0]
    table = {"lr": 9, "best": 0}
    move({"lr": 1, "best": 5}, table, override=["lr"])
    assert table == {"lr": 9, "best": 5}
    with pytest.raises(MismatchError, match=r"float32 \(2,\), tracked as torch\.float32 \(3,\)"):
        move(torch.ones(2), torch.ones(3))


def test_kinds_must_agree() -> None:
    with pytest.raises(MismatchError, match=r"a module .Net. is tracked, the snapshot holds a dict"):
        move({"a": 1}, net(1))


def test_devices() -> None:
    tree, source = through_bytes({}, {"value": torch.ones(2)})
    node = {**tree["run"]["value"], "device": "cuda:99"}
    with pytest.raises(MismatchError, match=r"vars: cuda:99 is not on this machine; .*map_location"):
        source.value(node, path="vars")
    for location in ("cpu", torch.device("cpu"), {"cuda:99": "cpu"}):
        assert source.value(node, map_location=location).device.type == "cpu"
    assert source.value(node, map_location="meta").device.type == "meta"


def test_the_rows_that_a_tree_needs() -> None:
    tree, _ = through_bytes({"model": net(1), "table": {"a": np.ones(2), "b": [torch.ones(1)]}})
    assert len(tensor_indices(tree["objects"]["model"])) == 9
    assert len(tensor_indices(tree["objects"]["table"])) == 2
    assert tensor_indices(tree) == frozenset(range(11))
