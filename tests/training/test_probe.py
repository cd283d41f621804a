"""The probe of a drill: it sees what it should, repeats nothing, and changes no number."""

from __future__ import annotations

import copy
import random
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spotckpt
from spotckpt.errors import UsageError
from spotckpt.training.around import Around
from spotckpt.training.digests import digest, tensor_digest
from spotckpt.training.probe import _generators, _torch_drawn
from spotckpt.training.rng import capture_rng
from spotckpt.training.witness import PROBE_VARIABLE, Delta, Plan, Record, go_path, held_path, read_life

names = st.text(max_size=3)
texts = st.dictionaries(names, st.text(max_size=3), max_size=4)
lists = st.dictionaries(
    names, st.lists(st.one_of(st.none(), st.floats(allow_nan=False), st.text(max_size=3))), max_size=4
)
records = st.builds(
    Record,
    st.sampled_from(["open", "start", "step", "epoch", "end"]),
    st.integers(0, 9),
    st.integers(0, 9),
    lists,
    texts,
    lists,
    texts,
    texts,
    lists,
)


@given(st.lists(records, max_size=6))
def test_records_come_back_from_lines_that_say_only_what_changed(written):
    writer, reader = Delta(), Delta()
    assert [reader.from_line(writer.to_line(one)) for one in written] == written


def test_what_did_not_change_is_not_written_again():
    delta = Delta()
    one = Record("step", 1, tensors={"model/weight": ["d", 1.0, [2]]})
    delta.to_line(one)
    assert delta.to_line(one)["tensors"] == {}


def test_a_line_that_is_being_written_is_left_for_later(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"resumed_from": null}\n{"resumed_from": "a0001')
    assert read_life(tmp_path).resumed_from is None


# Training under it


def train(uri, *, plain_loop=False):
    """Returns weights, momentum, the generators' states and the losses."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    data = torch.randn(24, 4)
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average, losses = copy.deepcopy(model), []

    def step(x):
        loss = (model(x * float(np.random.rand()) + random.random()) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    if plain_loop:
        for _ in range(2):
            for x in loader:
                step(x)
    else:
        with spotckpt.open_run(uri) as run:
            run.track(model=model, optimizer=optimizer)
            for _ in run.epochs(2):
                for x in run.batches(loader):
                    step(x)
                    run.log("train", loss=losses[-1])
    assert average is not model
    return digest([model.state_dict(), optimizer.state_dict(), capture_rng(), losses])


@pytest.fixture
def probed(tmp_path, monkeypatch, here):
    """The folder of a probe, and the address of the run that it goes with."""
    folder = tmp_path / "life"
    folder.mkdir()
    monkeypatch.setenv(PROBE_VARIABLE, str(folder))
    monkeypatch.setenv("SPOTCKPT_URI", f"file://{tmp_path}/run")
    here.enter(monkeypatch)
    return folder


def test_a_training_under_the_probe_is_the_training_without(probed):
    expected = train(None, plain_loop=True)
    assert train(None) == expected
    life = read_life(probed)
    assert [one.at for one in life.records[:3]] == ["open", "start", "step"]
    assert life.ended
    assert life.last_step == 12
    seen = life.records[2]
    assert {"model/0.weight", "optimizer/state/0/momentum_buffer"} <= seen.tensors.keys()
    assert seen.generators.keys() >= {"torch", "numpy", "python"}
    assert seen.metrics.keys() == {"train/loss"}
    assert seen.batch.keys() == {"batch"}
    assert {"average.0.weight", "losses"} <= seen.locals.keys()
    assert not {"model.0.weight", "run", "optimizer.state"} & seen.locals.keys(), "what is tracked is no local"
    assert {value[5] for value in seen.locals.values()} <= {
        "train() in test_probe.py",
        "test_a_training_under_the_probe_is_the_training_without() in test_probe.py",
        "test_probe.py",
    }
    assert sum(one.at == "epoch" for one in life.records) == 2


def test_a_trainer_waits_where_it_is_held_and_saves_where_it_is_asked(probed, tmp_path):
    Plan(saves=(3,), holds=(5,)).write(probed)
    go_path(probed, 5).touch()
    train(None)
    assert held_path(probed, 5).exists()
    steps = sorted(path.name.split("-")[2] for path in (tmp_path / "run/snapshots").iterdir())
    assert steps == ["s00000003", "s00000012"]


def test_a_run_that_is_not_the_drills_is_refused_before_it_is_claimed(probed, tmp_path):
    with pytest.raises(UsageError, match="the drill's run is file://"):
        train(f"file://{tmp_path}/production")
    assert not (tmp_path / "production").exists()


# What it sees


class Trainer:
    def __init__(self):
        self.average = [torch.ones(2), torch.ones(3)]
        self.seen = 3
        self.rng = np.random.default_rng(0)
        self.recent = deque([1.0, 2.0])


def look(tracked, **values):
    """What is seen of a function that has these."""

    def train(self, net, table):
        return Around({id(one) for one in tracked}, {one.data_ptr() for one in tracked}).look()

    return train(values.get("trainer"), values.get("net"), values.get("table"))


def test_attributes_are_named_by_their_path():
    leaves = look([], trainer=Trainer())
    assert leaves["self.average[0]"][0] == "tensor"
    assert leaves["self.average[0]"][3:5] == ["self.average", "list"]
    assert leaves["self.seen"][:3] == ["number", "3", "3"]
    assert leaves["self.rng"][0] == "generator"
    assert leaves["self.recent"][0] == "list"
    assert "train() in test_probe.py" in leaves["self.seen"][5]


def test_tensors_that_are_tracked_are_left_out_wherever_they_are_seen():
    net = torch.nn.Linear(2, 2)
    assert "net.weight" in look([], net=net)
    assert not {"net.weight", "net.bias"} & look([net.weight, net.bias], net=net).keys()


def test_a_variable_is_named_as_its_own_function_calls_it_whoever_has_one_of_that_name_too():
    table = [3.0]
    leaves = look([], table=[1.0, 2.0])
    [path] = [name for name in leaves if name.endswith("() in test_probe.py.table")]
    assert leaves["table"][2:4] == ["2 values", "table"]
    assert leaves[path][2:4] == [f"{len(table)} values", "table"]


def test_numbers_of_a_module_are_seen():
    net = torch.nn.Linear(2, 2)
    net.calls = 7
    assert look([net.weight], net=net)["net.calls"][1] == "7"


def test_looking_does_not_end_in_circles_or_in_long_tables():
    table = {index: torch.ones(1) for index in range(1000)}
    table["self"] = table
    assert len([name for name in look([], table=table) if name.startswith("table")]) == 64


# Digests


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.empty(0, 3),
        torch.ones(3).to_sparse(),
    ],
    ids=str,
)
def test_any_tensor_has_a_digest_that_is_its_own(tensor):
    assert tensor_digest(tensor) == tensor_digest(tensor.clone())
    assert tensor_digest(tensor) != tensor_digest(torch.full((7,), 3.0))


def test_a_large_tensor_that_is_sampled_shows_that_it_moved():
    large = torch.zeros(6_000_000)
    before = tensor_digest(large, sampled=True)
    assert tensor_digest(large + 1e-7, sampled=True) != before


def test_zero_and_minus_zero_are_two():
    assert digest({"a": [0.0]}) != digest({"a": [-0.0]})
    assert digest([1, 2]) != digest([2, 1])


def test_a_generator_that_was_only_seeded_is_told_from_one_that_was_drawn_from():
    torch.manual_seed(5)
    assert _torch_drawn(torch.get_rng_state().numpy().tobytes()) == (False, 5)
    torch.rand(1)
    assert _torch_drawn(torch.get_rng_state().numpy().tobytes()) == (True, 5)
    states = {"rng": {}, "watched": {}}
    for seed, draw, name in ((random.seed, random.random, "python"), (np.random.seed, np.random.rand, "numpy")):
        seed(0)
        assert _generators({**states, "rng": capture_rng()})[name][1] is False
        draw()
        assert _generators({**states, "rng": capture_rng()})[name][1] is True
