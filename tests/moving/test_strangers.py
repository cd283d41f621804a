"""Files of strangers: nothing of them is executed, and nothing of a size that they declare is made unchecked."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spotckpt.errors import Corrupt, LimitExceeded, SpotckptError, UsageError
from spotckpt.moving import torch_file
from spotckpt.moving.contents import fingerprint
from spotckpt.moving.files import write
from spotckpt.moving.formats import format_of
from tests.cli.command import in_process
from tests.moving.made import FILES, contents, found_in, model, run_of
from tests.moving.old import old_file

HUGE = 1 << 42


class Executed:
    """What a pickle does when it is executed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.folder / "executed"),)


# Pickles


@pytest.mark.fault(69)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_push_names_what_a_pickle_wants_and_executes_nothing(legacy, protocol, tmp_path):
    path = tmp_path / "c.pt"
    torch.save(
        {"w": torch.ones(2), "a": Executed(tmp_path), "d": collections.deque()},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    done = in_process("push", str(path), f"file://{tmp_path}/run")
    assert done.status == 64
    assert "for collections.deque, posix.mkdir; if you trust who wrote it: --trust-pickle" in done.err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.pt"]


def test_trust_pickle_is_the_explicit_way(tmp_path):
    path, uri = tmp_path / "c.pt", f"file://{tmp_path}/run"
    torch.save(model(), path)  # a whole module: its classes are named
    refused = in_process("push", str(path), uri)
    assert refused.status == 64 and "torch.nn.modules.linear.Linear" in refused.err
    done = in_process("push", str(path), uri, "--trust-pickle")
    assert done.status == 0 and ": model; 0 vars; step 0" in done.out
    torch.save({"model": model().state_dict(), "a": Executed(tmp_path)}, path)
    assert in_process("push", str(path), f"{uri}2", "--trust-pickle").status == 0
    assert (tmp_path / "executed").is_dir()


def test_trust_pickle_needs_no_pytorchcheckpoint_for_its_object(tmp_path):
    old_file(tmp_path / "c.pt", {"iteration": 3, "names": frozenset({"a"})})
    assert in_process("push", str(tmp_path / "c.pt"), f"file://{tmp_path}/run").status == 64
    done = in_process("push", str(tmp_path / "c.pt"), f"file://{tmp_path}/run", "--trust-pickle")
    assert done.status == 0 and "step 3" in done.out


@pytest.mark.fault(69)
def test_a_table_of_dcp_is_never_executed(tmp_path):
    path = tmp_path / "c.dcp"
    write(contents(), path, "dcp")
    (path / ".metadata").write_bytes(pickle.dumps(Executed(tmp_path)))
    for trusting in ((), ("--trust-pickle",)):
        done = in_process("push", str(path), f"file://{tmp_path}/run", *trusting)
        assert done.status == 64 and "wants posix.mkdir" in done.err
    assert not (tmp_path / "executed").exists()


@pytest.mark.fault(69)
def test_a_value_in_a_dcp_directory_is_never_executed(tmp_path):
    from torch.distributed.checkpoint import FileSystemWriter, save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"a": Executed(tmp_path)}, storage_writer=FileSystemWriter(tmp_path / "c.dcp"), no_dist=True)
    with pytest.raises(UsageError, match=r"for posix\.mkdir"):
        found_in(tmp_path / "c.dcp")
    assert not (tmp_path / "executed").exists()


def test_harmless_values_of_numpy_are_read(tmp_path):
    import numpy as np

    values = {"a": np.arange(6, dtype=">i2").reshape(2, 3, order="F"), "s": np.float32(2), "b": np.bool_(True)}
    torch.save(values | {"u": np.array(["x", "yz"])}, tmp_path / "c.pt")
    found = found_in(tmp_path / "c.pt").vars
    assert found["a"].dtype.str == ">i2" and found["a"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert type(found["s"]) is np.float32 and found["b"] and found["u"].tolist() == ["x", "yz"]
    torch.save({"o": np.array([print], dtype=object)}, tmp_path / "o.pt")
    with pytest.raises(UsageError, match=r"for builtins\.print"):
        found_in(tmp_path / "o.pt")


# Other versions

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.fault(68)
@pytest.mark.parametrize("name", FILES)
def test_a_future_format_says_to_upgrade(name, tmp_path, monkeypatch):
    monkeypatch.setattr("spotckpt.moving.contents.FORMAT", 2)
    monkeypatch.setattr("spotckpt.moving.files.fingerprint", lambda given: None)
    monkeypatch.setattr("spotckpt.moving.files.read", lambda *_: contents())
    write(contents(), tmp_path / name, format_of(tmp_path / name, None))
    monkeypatch.undo()
    done = in_process("push", str(tmp_path / name), f"file://{tmp_path}/run")
    assert done.status == 32 and "format 2, this version reads up to 1; upgrade spotckpt" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(68)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_format_1_stays_readable(name):
    from tests.moving.golden.make import golden

    found = found_in(GOLDEN / "format-1" / name)
    assert fingerprint(found) == fingerprint(golden())


@pytest.mark.fault(68)
def test_a_file_of_the_adapter_of_format_1_stays_readable():
    from spotckpt.adapters.pytorchcheckpoint import CheckpointHandler
    from tests.moving.golden.make import golden

    found = CheckpointHandler.load_checkpoint(GOLDEN / "format-1" / "handler.pth.tar")
    assert found.iteration == 7 and found.train == {"top1": {0: 80}} and found.rng_state["python"]["version"] == 3
    assert torch.equal(found.model_state_dict["weight"], golden().objects["model"]["weight"])


# Absurd sizes


def refused(path: Path, kind: type[SpotckptError], match: str) -> None:
    with pytest.raises(kind, match=match):
        found_in(path)


def pickled(path: Path, value: Callable[[Any], None], *, data: bytes = b"") -> Path:
    """A zip of torch.save whose pickle is made opcode by opcode."""
    with zipfile.ZipFile(path, "w") as archive:
        file = io.BytesIO()
        file.write(b"\x80\x02")
        value(file)
        file.write(b".")
        archive.writestr("archive/data.pkl", file.getvalue())
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", data)
    return path


def _storage(file: Any, numel: int) -> None:
    file.write(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu")
    file.write(_int(numel) + b"tQ")


def _int(value: int) -> bytes:
    data = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + data


def _tensor(file: Any, *, numel: int, size: int, stride: int) -> None:
    file.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
    _storage(file, numel)
    file.write(_int(0) + _int(size) + b"\x85" + _int(stride) + b"\x85" + b"\x89ccollections\nOrderedDict\n)RtR")


@pytest.mark.fault(70)
@pytest.mark.parametrize(
    ("value", "match"),
    [
        (lambda file: _tensor(file, numel=4, size=HUGE, stride=1), "larger than its bytes"),
        (lambda file: _tensor(file, numel=4, size=HUGE, stride=0), "many times"),
        (lambda file: _storage(file, 1 << 60), "declares a tensor of"),
        (lambda file: file.write(b"c__builtin__\nbytearray\n" + _int(HUGE) + b"\x85R"), "made of nothing"),
        (lambda file: file.write(b"ctorch\nFloatTensor\n" + _int(HUGE) + b"\x85R"), "FloatTensor|calls"),
        (lambda file: file.write(b"ctorch\nFloatStorage\n" + _int(HUGE) + b"\x85R"), r"calls torch\.FloatStorage"),
        (
            lambda file: file.write(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R"),
            r"encodes text as \('hex',\)",
        ),
    ],
    ids=["shape", "repeated", "storage", "bytearray", "tensor", "made storage", "codec"],
)
def test_a_pickle_that_wants_any_amount_of_memory(value, match, tmp_path):
    path = pickled(tmp_path / "c.pt", value, data=bytes(16))
    with pytest.raises((LimitExceeded, UsageError), match=match):
        found_in(path)


@pytest.mark.fault(70)
def test_the_forged_tensor_would_be_good_if_it_told_the_truth(tmp_path):
    path = pickled(tmp_path / "c.pt", lambda file: _tensor(file, numel=4, size=4, stride=1), data=bytes(16))
    assert torch_file.read(path, name=path).tolist() == [0] * 4


@pytest.mark.fault(70)
def test_a_storage_that_is_shorter_than_declared(tmp_path):
    path = pickled(tmp_path / "c.pt", lambda file: _tensor(file, numel=5, size=5, stride=1), data=bytes(16))
    refused(path, Corrupt, "missing or short")


@pytest.mark.fault(70)
def test_a_legacy_file_that_declares_more_than_it_has(tmp_path):
    path = tmp_path / "c.pt"
    torch.save({"w": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refused(path, Corrupt, "cut short")
    at = data.rindex(b"\x05\x00\x00\x00") if b"\x05\x00\x00\x00" in data[-40:] else len(data) - 24
    forged = data[:at] + struct.pack("<q", HUGE) + data[at + 8 :]
    path.write_bytes(forged)
    refused(path, Corrupt, "of another length")


@pytest.mark.fault(70)
def test_many_thousand_tensors_are_read_and_more_than_a_million_refused(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    header = {f"t{k}": {"dtype": "U8", "shape": [1], "data_offsets": [k, k + 1]} for k in range(20_000)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(20_000))
    assert len(found_in(path).objects["model"]) == 20_000
    monkeypatch.setattr("spotckpt.snapshot.pack.MAX_TENSORS", 19_999)
    refused(path, Corrupt, "not an object of tensors")
    monkeypatch.setattr("spotckpt.moving.pickles.MAX_TENSORS", 2)
    torch.save([torch.ones(1) for _ in range(3)], tmp_path / "c.pt")
    refused(tmp_path / "c.pt", LimitExceeded, "more than 2 tensors")


@pytest.mark.fault(70)
def test_deep_values(tmp_path):
    path = pickled(tmp_path / "c.pt", lambda file: file.write(b"]" * 100_000 + b"a" * 99_999))
    refused(path, LimitExceeded, "nested deeper")
    deep = b'{"__metadata__":{"spotckpt":"' + b"[" * 100_000 + b"]" * 100_000 + b'"}}'
    (tmp_path / "c.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    refused(tmp_path / "c.safetensors", Corrupt, "description does not fit: RecursionError")
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    (tmp_path / "c.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    refused(tmp_path / "c.safetensors", Corrupt, "not JSON")


@pytest.mark.fault(70)
@pytest.mark.parametrize(
    ("data", "kind", "match"),
    [
        ((1 << 60).to_bytes(8, "little") + b"{}", LimitExceeded, "declares a header"),
        ((1 << 20).to_bytes(8, "little") + b"{}", Corrupt, "cut short"),
        (b"{}", Corrupt, "too short"),
        ((2).to_bytes(8, "little") + b"{}x", Corrupt, "its header tells of"),
    ],
)
def test_absurd_safetensors_headers(data, kind, match, tmp_path):
    (tmp_path / "c.safetensors").write_bytes(data)
    refused(tmp_path / "c.safetensors", kind, match)


@pytest.mark.fault(70)
def test_a_description_that_lies_about_its_tensors(tmp_path):
    path = tmp_path / "c.safetensors"
    write(contents(), path, "safetensors")
    data = path.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    about = json.loads(header["__metadata__"]["spotckpt"])
    doubled = next(one for one in about["tensors"] if one[1] == "F64" and header[one[0]]["shape"] == [5])
    doubled[1] = "C128"  # pairs of numbers, of which five are none
    header["__metadata__"]["spotckpt"] = json.dumps(about)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[length:])
    refused(path, Corrupt, "its description does not fit: RuntimeError")


@pytest.mark.fault(70)
def test_absurd_safetensors_shapes(tmp_path):
    for shape, size in (([HUGE, HUGE], 4), ([1 << 60, 0], 0)):
        text = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
        (tmp_path / "c.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
        refused(tmp_path / "c.safetensors", LimitExceeded, "over the cap")


@pytest.mark.fault(70)
@pytest.mark.parametrize("step", [float("nan"), float("inf"), -1, 10**30, "7", 2.5])
def test_a_step_that_is_none(step, tmp_path):
    old_file(tmp_path / "c.pt", {"iteration": step, "model_state_dict": model().state_dict()})
    refused(tmp_path / "c.pt", UsageError, "is no number of steps")
    given = contents()
    given.step = step
    torch.save({**_document(given)}, tmp_path / "d.pt")
    refused(tmp_path / "d.pt", UsageError, "is no number of steps")
    torch.save({"model": model().state_dict(), "step": step}, tmp_path / "e.pt")
    assert found_in(tmp_path / "e.pt").step == 0


def _document(given: Any) -> Any:
    from spotckpt.moving.document import to_document

    return to_document(given)


@pytest.mark.fault(70)
@pytest.mark.fault(71)
def test_a_dcp_table_that_lies(tmp_path):
    path = tmp_path / "c.dcp"
    write(contents(), path, "dcp")
    original = (path / ".metadata").read_bytes()

    def changed(change: Callable[[Any], None]) -> None:
        table = pickle.loads(original)  # our own
        change(table)
        (path / ".metadata").write_bytes(pickle.dumps(table))

    def resized(table: Any) -> None:
        table.state_dict_metadata["model.0.weight"].size = torch.Size([HUGE])

    def elsewhere(name: str) -> Callable[[Any], None]:
        def change(table: Any) -> None:
            for info in table.storage_data.values():
                info.relative_path = name

        return change

    def compressed(table: Any) -> None:
        for info in table.storage_data.values():
            info.transform_descriptors = ["zstd"]

    changed(resized)
    refused(path, LimitExceeded, "declares")
    for name in ("../c.pt", "/etc/passwd", "a/b"):
        changed(elsewhere(name))
        refused(path, Corrupt, "outside of the directory")

    def flattened(table: Any) -> None:
        table.state_dict_metadata["model.0.weight"].size = torch.Size([])

    changed(compressed)
    refused(path, LimitExceeded, "compressed")
    changed(flattened)
    refused(path, Corrupt, "do not fit each other")
    (path / ".metadata").write_bytes(original[:-10])
    refused(path, Corrupt, "cut short or damaged")


# Compressed bombs


@pytest.mark.fault(72)
def test_a_compressed_file_is_refused_unread(tmp_path):
    path = tmp_path / "c.pt"
    torch.save({"w": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert (tmp_path / "z.pt").stat().st_size < 20_000
    refused(tmp_path / "z.pt", LimitExceeded, "is compressed: .* bytes that want to be")


@pytest.mark.fault(72)
@pytest.mark.parametrize("declared", [1 << 30, 1 << 15])
def test_entries_that_declare_more_than_there_is_are_refused(declared, tmp_path):
    path = tmp_path / "c.pt"
    torch.save({"w": torch.zeros(1 << 12)}, path)
    data = path.read_bytes()
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"c/data/0"))  # in the table at the end, which is what counts
    path.write_bytes(data[: entry + 20] + struct.pack("<II", declared, declared) + data[entry + 28 :])
    with pytest.raises((LimitExceeded, Corrupt), match=r"declares|ends within|checksum"):
        found_in(path)


@pytest.mark.fault(72)
@pytest.mark.parametrize("what", ["pack", "part", "manifest"])
def test_an_object_that_the_store_says_is_gzip_is_not_unpacked(what, seaweed_env, tmp_path):
    """What it would unpack to is just what was committed: who takes it for that has unpacked it."""
    import gzip

    manifest = run_of(seaweed_env.uri)
    key = {
        "pack": manifest.packs[0].key,
        "part": manifest.parts[0].key,
        "manifest": f"snapshots/{manifest.snapshot}.json",
    }[what]
    place = {"Bucket": seaweed_env.bucket, "Key": f"run/{key}"}
    packed = gzip.compress(seaweed_env.client.get_object(**place)["Body"].read())
    seaweed_env.client.put_object(**place, Body=packed, ContentEncoding="gzip")
    done = in_process("verify", f"{seaweed_env.uri}@{manifest.snapshot}")
    assert done.status == 31 and key in done.err
    assert in_process("pull", seaweed_env.uri, str(tmp_path / "m.pt")).status in (31, 34)
    assert not (tmp_path / "m.pt").exists()
