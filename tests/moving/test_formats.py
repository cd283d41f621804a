"""What is written comes back, to the last bit; and others can read it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spotckpt.errors import Corrupt, EncodeError, UsageError
from spotckpt.moving.atomic import made
from spotckpt.moving.contents import Contents, fingerprint
from spotckpt.moving.files import write
from spotckpt.moving.formats import format_of
from tests.cli.command import in_process
from tests.moving.made import FILES, contents, found_in, model, run_of, stepped
from tests.support.mounts import tmpfs


def written(tmp_path: Path, name: str, given: Contents) -> Path:
    path = tmp_path / name
    write(given, path, format_of(path, None))
    assert [one.name for one in tmp_path.iterdir()] == [name]
    return path


@pytest.mark.parametrize("name", FILES)
def test_everything_comes_back(name, tmp_path):
    given = contents()
    found = found_in(written(tmp_path, name, given))
    assert fingerprint(found) == fingerprint(given)
    assert found.vars["array"].dtype.str == ">i4" and type(found.vars["scalar"]) is type(given.vars["scalar"])
    assert found.vars["channels_last"].stride() == given.vars["channels_last"].stride()
    assert found.objects["fresh"]["state"] == {}
    assert found.objects["model"]._metadata == given.objects["model"]._metadata
    assert found.history["train"]["loss"]["epoch"].tolist() == [0, 0, 1, 1, 2]


def test_a_pt_file_is_a_plain_dictionary_without_classes(tmp_path):
    given = contents()
    loaded = torch.load(written(tmp_path, "c.pt", given), weights_only=True)
    assert list(loaded) == ["model", "optimizer", "fresh", "vars", "history", "step", "epoch", "spotckpt"]
    model().load_state_dict(loaded["model"])
    stepped(model()).load_state_dict(loaded["optimizer"])
    assert loaded["vars"]["class_to_idx"] == {"cat": 0, "dog": 1}
    assert loaded["history"]["train"]["loss"]["value"].tolist() == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]


@pytest.mark.parametrize("name", FILES)
def test_a_module_alone_is_its_state_dict(name, tmp_path):
    state = model().state_dict()
    state["tied"] = state["0.weight"]
    path = written(tmp_path, name, Contents({"ema": state}, {"ema": "module"}))
    found = found_in(path).objects
    [(_, values)] = found.items()
    assert values.keys() == state.keys() and all(torch.equal(values[key], state[key]) for key in state)
    if name.endswith(".pt"):
        assert torch.load(path, weights_only=True).keys() == state.keys()
    if name.endswith(".safetensors"):
        assert load_file(path).keys() == state.keys()


def test_an_optimizer_alone_is_its_state_dict(tmp_path):
    state = stepped(model()).state_dict()
    path = written(tmp_path, "o.pt", Contents({"optimizer": state}, {"optimizer": "optimizer"}))
    assert torch.load(path, weights_only=True)["param_groups"] == state["param_groups"]
    assert found_in(path).kinds == {"optimizer": "optimizer"}


def test_torch_loads_the_dcp_directory_into_live_objects(tmp_path):
    from torch.distributed.checkpoint import load

    given = contents()
    path = written(tmp_path, "c.dcp", given)
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    states = {"model": other.state_dict(), "optimizer": stepped(other).state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(states, checkpoint_id=path, no_dist=True)
    assert all(torch.equal(one, given.objects["model"][key]) for key, one in states["model"].items())
    assert torch.equal(states["optimizer"]["state"][0]["exp_avg"], given.objects["optimizer"]["state"][0]["exp_avg"])


def test_a_dcp_directory_of_torch_alone_is_read(tmp_path):
    from torch.distributed.checkpoint import FileSystemWriter, save

    one = model()
    states = {"model": one.state_dict(), "optimizer": stepped(one).state_dict(), "epoch": 7, "names": ["a", "b"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(states, storage_writer=FileSystemWriter(tmp_path / "c.dcp"), no_dist=True)
    found = found_in(tmp_path / "c.dcp")
    assert found.kinds == {"model": "module", "optimizer": "optimizer"}
    assert (found.epoch, found.vars) == (7, {"epoch": 7, "names": ["a", "b"]})
    assert torch.equal(found.objects["model"]["0.weight"], one.state_dict()["0.weight"])
    assert found.objects["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_a_safetensors_file_of_others_is_read(tmp_path):
    from safetensors.torch import save_file

    state = {key: one.clone() for key, one in model().state_dict().items()}
    state["odd"] = torch.ones(3, dtype=torch.uint8)
    save_file(state, tmp_path / "m.safetensors", metadata={"by": "others"})
    found = found_in(tmp_path / "m.safetensors")
    assert found.kinds == {"model": "module"}
    assert all(torch.equal(found.objects["model"][key], one) for key, one in state.items())


def test_what_load_that_checkpoint_saves_is_read(tmp_path):
    one = model()
    optimizer = stepped(one)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    saved = {
        "input_size": 784,
        "epochs": 12,
        "arch": "resnet",
        "class_to_idx": {"cat": 0},
        "state_dict": one.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
    }
    torch.save(saved, tmp_path / "checkpoint.pth")
    found = found_in(tmp_path / "checkpoint.pth")
    assert found.kinds == {"model": "module", "optimizer": "optimizer", "scheduler": "stateful"}
    assert found.vars == {"input_size": 784, "epochs": 12, "arch": "resnet", "class_to_idx": {"cat": 0}}
    assert (found.step, found.epoch) == (0, 12)


def test_what_cannot_be_held_is_refused_by_its_path_and_nothing_is_there(tmp_path):
    with pytest.raises(EncodeError, match=r"vars.f"):
        write(contents(vars={"f": print}), tmp_path / "c.pt", "pt")
    with pytest.raises(UsageError, match="'vars'"):
        write(contents(objects={"vars": {}}, kinds={"vars": "dict"}), tmp_path / "c.pt", "pt")
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_cannot_be_is_named(tmp_path):
    (tmp_path / "full.dcp").mkdir()
    with pytest.raises(UsageError, match=r"full\.dcp is a directory"):
        write(contents(), tmp_path / "full.dcp", "dcp")
    with pytest.raises(UsageError, match="nowhere is no directory"):
        write(contents(), tmp_path / "nowhere" / "c.pt", "pt")
    with pytest.raises(UsageError, match=r"cannot write /proc/c\.pt: No such file"), made(Path("/proc/c.pt")) as file:
        file.touch()
    with pytest.raises(UsageError, match=r"c\.txt: its name does not say"):
        format_of(tmp_path / "c.txt", None)


def test_what_is_no_file_is_never_replaced_and_a_link_leads_to_the_file(tmp_path):
    """As root it could be: a pull to a device would put a file in its place."""
    small = Contents({"model": model().state_dict()}, {"model": "module"})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is no file"):
        write(small, tmp_path / "pipe", "pt")
    run_of(f"file://{tmp_path}/run")
    done = in_process("pull", f"file://{tmp_path}/run", str(tmp_path / "pipe"), "--format", "pt")
    assert done.status == 64 and "pipe is no file" in done.err
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c.pt").symlink_to(tmp_path / "elsewhere" / "c.pt")
    write(small, tmp_path / "c.pt", "pt")
    assert (tmp_path / "c.pt").is_symlink() and found_in(tmp_path / "elsewhere" / "c.pt").objects.keys() == {"model"}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.pt", "elsewhere", "pipe", "run"]


def test_a_file_that_reads_back_differently_does_not_get_its_name(tmp_path, monkeypatch):
    def save(document, path):
        document["model"]["0.weight"] = document["model"]["0.weight"].clone()
        document["model"]["0.weight"].view(torch.int32)[0, 0] ^= 1
        torch.save(document, path)

    monkeypatch.setattr("spotckpt.moving.files.save", save)
    (tmp_path / "c.pt").write_bytes(b"before")
    with pytest.raises(Corrupt, match="read back"):
        write(contents(), tmp_path / "c.pt", "pt")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("c.pt", b"before")]


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path):
    with tmpfs(tmp_path / "disk", "size=2m") as disk:
        (disk / "c.pt").write_bytes(b"before")
        large = Contents({"model": {"w": torch.ones(1 << 20)}}, {"model": "module"})
        for name in ("c.pt", "c.safetensors", "c.dcp"):
            with pytest.raises(UsageError, match="bytes free, and 4194304 are needed"):
                write(large, disk / name, format_of(disk / name, None))
        assert [one.name for one in disk.iterdir()] == ["c.pt"]
        assert (disk / "c.pt").read_bytes() == b"before"
