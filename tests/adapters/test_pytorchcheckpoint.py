"""pytorchcheckpoint's interface: the results of its version 0.0.5, and what was broken there."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from spotckpt.adapters.pytorchcheckpoint import CheckpointHandler
from spotckpt.errors import AddressError, Corrupt, EncodeError, FutureFormat, UsageError
from tests.moving.made import model, stepped
from tests.moving.old import old_file


def same(left: object, right: object) -> bool:
    saved = [io.BytesIO(), io.BytesIO()]
    for value, file in zip((left, right), saved, strict=True):
        torch.save(value, file)
    return saved[0].getvalue() == saved[1].getvalue()


@pytest.fixture(params=["path", "uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "path" else request.getfixturevalue("s3_env").uri


# What a variable is


def test_a_variable_is_an_attribute_and_a_missing_one_is_false():
    handler = CheckpointHandler()
    handler.store_var(var_name="num_of_classes", value=1000)
    assert handler.get_var(var_name="num_of_classes") == handler.num_of_classes == 1000
    assert handler.get_var(var_name="num_classes") is False
    handler.store_var("num_of_classes", 10)
    assert handler.get_var("num_of_classes") == 10
    assert handler.get_var("prefix_name") == "checkpoint"


def test_exist_fail_refuses_a_second_value_only():
    handler = CheckpointHandler()
    handler.store_var(var_name="n", value=1000, exist_fail=True)
    with pytest.raises(Exception) as caught:
        handler.store_var(var_name="n", value=1001, exist_fail=True)
    assert caught.value.args == ("var_name='n' already exists",)
    assert handler.n == 1000


def test_a_running_variable_is_a_dictionary_by_iteration():
    handler = CheckpointHandler()
    for iteration, value in enumerate((1.0, 0.9, 0)):
        handler.store_running_var(var_name="loss", iteration=iteration, value=value)
    handler.store_running_var("loss", 0, 2.0)
    handler.store_running_var("loss", 9, None)
    assert handler.loss == {0: 2.0, 1: 0.9, 2: 0, 9: None}
    assert [handler.get_running_var(var_name="loss", iteration=one) for one in (0, 1, 2)] == [2.0, 0.9, 0]
    assert handler.get_running_var("loss", 3) is False
    assert handler.get_running_var("loss", 9) is False
    assert handler.get_running_var("losses", 0) is False


def test_a_header_is_a_dictionary_of_running_variables():
    handler = CheckpointHandler()
    for header in ("train", "valid", "test"):
        handler.store_running_var_with_header(header=header, var_name="loss", iteration=0, value=1.0)
        handler.store_running_var_with_header(header=header, var_name="top1", iteration=0, value=80)
        handler.store_running_var_with_header(header=header, var_name="top1", iteration=1, value=85)
    assert handler.train == handler.valid == {"loss": {0: 1.0}, "top1": {0: 80, 1: 85}}
    assert handler.get_running_var_with_header(header="train", var_name="top1", iteration=1) == 85
    for header, name, iteration in (("Train", "loss", 0), ("train", "losses", 0), ("train", "loss", 15)):
        assert handler.get_running_var_with_header(header, name, iteration) is False


# Files


def filled() -> CheckpointHandler:
    handler = CheckpointHandler()
    handler.store_var("class_to_idx", {"cat": 0})
    handler.store_var("means", np.arange(3.0))
    handler.store_var("best", np.float64(0.5))
    handler.store_running_var("loss", 0, 1.0)
    handler.store_running_var_with_header("train", "top1", 0, 80)
    return handler


def test_a_file_has_everything(folder):
    one = model()
    optimizer = stepped(one)
    handler = filled()
    path = handler.generate_checkpoint_path(path2save=folder)
    assert path.startswith(f"{folder}/checkpoint_D") and path.endswith(".pth.tar")
    handler.save_checkpoint(checkpoint_path=path, iteration=25, model=one, optimizer=optimizer)
    found = CheckpointHandler.load_checkpoint(path)
    assert type(found) is CheckpointHandler
    assert vars(found).keys() == vars(handler).keys()
    assert found.iteration == 25 and found.loss == {0: 1.0} and found.train == {"top1": {0: 80}}
    assert type(found.best) is np.float64 and found.means.tolist() == [0, 1, 2]
    assert same(found.model_state_dict, one.state_dict())
    assert same(found.optimizer_state_dict, optimizer.state_dict())


def test_without_an_optimizer_there_is_none(tmp_path):
    one = model()
    handler = CheckpointHandler()
    handler.save_checkpoint(str(tmp_path / "a"), 1, one, stepped(one))
    handler.save_checkpoint(tmp_path / "b", 2, one)
    found = handler.load_checkpoint(tmp_path / "b")
    assert found.get_var("optimizer_state_dict") is False and found.iteration == 2
    with pytest.raises(UsageError, match="no optimizer_state_dict"):
        found.restore(one, stepped(one))


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda one: torch.nn.DataParallel(torch.nn.DataParallel(one))])
def test_data_parallel_is_unwrapped(wrap, tmp_path):
    one = model()
    CheckpointHandler().save_checkpoint(tmp_path / "c", 0, wrap(one), stepped(one))
    found = CheckpointHandler.load_checkpoint(tmp_path / "c")
    assert found.model_state_dict.keys() == one.state_dict().keys()
    found.restore(wrap(model()))


def test_torch_reads_it_without_a_class(tmp_path):
    one = model()
    filled().save_checkpoint(tmp_path / "c", 0, one, stepped(one))
    loaded = torch.load(tmp_path / "c", weights_only=True)
    assert loaded["train"] == {"top1": {0: 80}}
    assert same(loaded["model_state_dict"], one.state_dict())


def test_two_saves_in_one_minute_are_two_files(tmp_path):
    handler = CheckpointHandler()
    for iteration in range(5):
        handler.save_checkpoint(handler.generate_checkpoint_path(str(tmp_path)), iteration, model())
    files = list(tmp_path.iterdir())
    assert sorted(handler.load_checkpoint(one).iteration for one in files) == [0, 1, 2, 3, 4]


def test_a_training_goes_on_bit_for_bit(folder):
    """Model, optimizer, scheduler and the generators: against the same training that nobody interrupted."""

    def build():
        one = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        optimizer = torch.optim.Adam(one.parameters(), lr=0.1)
        return one, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def train(one, optimizer, scheduler):
        for _ in range(3):
            loss = one(torch.randn(2, 4) + np.random.rand() + random.random()).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()

    torch.manual_seed(1)
    objects = build()
    train(*objects)
    path = f"{folder}/c.pth.tar"
    CheckpointHandler().save_checkpoint(path, 3, *objects)
    train(*objects)
    torch.manual_seed(2)
    others = build()
    CheckpointHandler.load_checkpoint(path).restore(*others)
    train(*others)
    for left, right in zip(objects, others, strict=True):
        assert same(left.state_dict(), right.state_dict())


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "c"
    CheckpointHandler().save_checkpoint(path, 1, model())
    handler = CheckpointHandler()
    handler.store_var("tokenizer", {"fn": print})
    with pytest.raises(EncodeError, match=r"tokenizer\.fn"):
        handler.save_checkpoint(path, 2, model())
    assert CheckpointHandler.load_checkpoint(path).iteration == 1
    assert [one.name for one in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_the_old_package_are_read_without_it(legacy, tmp_path):
    attributes = {"iteration": 25, "train": {"top1": {0: np.float64(80.5)}}, "means": np.arange(3.0)}
    attributes |= {"model_state_dict": model().state_dict(), "names": {"a", "b"}, "prefix_name": "checkpoint"}
    old_file(tmp_path / "c.pth.tar", attributes, legacy=legacy)
    found = CheckpointHandler.load_checkpoint(str(tmp_path / "c.pth.tar"))
    assert type(found) is CheckpointHandler
    assert found.get_running_var_with_header("train", "top1", 0) == 80.5
    assert found.means.tolist() == [0, 1, 2] and found.names == {"a", "b"}
    assert same(found.model_state_dict, model().state_dict())


def test_a_plain_file_is_what_it_holds(tmp_path):
    torch.save({"epochs": 3, "w": torch.ones(2)}, tmp_path / "c")
    assert CheckpointHandler.load_checkpoint(tmp_path / "c")["epochs"] == 3


@pytest.mark.fault(69)
def test_a_pickle_is_never_executed(folder):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("executed",)

    file = io.BytesIO()
    torch.save({"a": Evil()}, file)
    path = f"{folder}/c"
    if "://" in folder:
        from spotckpt.store.open import open_store

        open_store(folder).put("c", [file.getvalue()])
    else:
        Path(path).write_bytes(file.getvalue())
    with pytest.raises(UsageError, match=r"for posix\.mkdir"):
        CheckpointHandler.load_checkpoint(path)
    assert not Path("executed").exists()


def test_what_is_no_checkpoint_is_told(folder, tmp_path):
    CheckpointHandler().save_checkpoint(tmp_path / "whole", 1, model())
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    with pytest.raises(Corrupt, match="half"):
        CheckpointHandler.load_checkpoint(tmp_path / "half")
    with pytest.raises(UsageError, match="nothing"):
        CheckpointHandler.load_checkpoint(tmp_path / "nothing")
    with pytest.raises(AddressError, match="names no object"):
        CheckpointHandler.load_checkpoint("s3://bucket/")


@pytest.mark.fault(68)
def test_a_future_format_says_to_upgrade(tmp_path):
    torch.save({"spotckpt": {"format": 2, "kind": "pytorchcheckpoint"}, "iteration": 1}, tmp_path / "c")
    with pytest.raises(FutureFormat, match=r"format 2.*upgrade"):
        CheckpointHandler.load_checkpoint(tmp_path / "c")
