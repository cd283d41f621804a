"""docs/format.md is enough to write a reader: this one follows it with `json`, `blake3` and `safetensors` alone."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from safetensors import safe_open

from spotckpt.snapshot import envelope, facts, manifest, pack, part, records, segments, tree
from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.save import commit, upload
from tests.snapshot.bucket import begin, local_store, sid
from tests.snapshot.golden import make

IDS = (sid(1, 0, 0), sid(1, 1, 10), sid(2, 0, 10), sid(2, 1, 20))
PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def body_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    assert data[:11] == b'{"blake3":"' and data[75:84] == b'","body":' and data[-1:] == b"}"
    body = data[84:-1]
    assert blake3(body).hexdigest() == data[11:75].decode()
    found = json.loads(body)
    assert found["format"] == 1
    return found


def follow(run: Path, attempt: int) -> list[str]:
    """The lineage of an attempt that recorded its base: ids, newest first."""
    ids = {path.stem for path in (run / "snapshots").iterdir()}
    chain, at = sorted((one for one in ids if one.startswith(f"a{attempt:04d}-")), reverse=True), attempt
    while base := body_of(run / f"attempts/{at:04d}.base.json")["snapshot"]:
        at = int(base[1:5])
        below = sorted((one for one in ids if one.startswith(base[:6]) and one[6:13] < base[6:13]), reverse=True)
        chain += [base, *below]
    return chain


def plain(node: Any, tensors: list[bytes]) -> Any:  # noqa: PLR0911
    """The state tree as plain values; tensors and arrays as their bytes."""
    if isinstance(node, list):
        return [plain(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    tags = [name for name in node if name.startswith("$")]
    if not tags:
        return {name: plain(item, tensors) for name, item in node.items()}
    (tag,) = tags
    value = node[tag]
    if tag in ("$tensor", "$array"):
        return tensors[value]
    if tag == "$float":
        return struct.unpack(">d", bytes.fromhex(value))[0]
    if tag == "$int":
        return int(value, 16)
    return tag, plain(value, tensors)


def read(run: Path, snapshot: str) -> tuple[dict[str, Any], Any, dict[str, bytes]]:
    """Manifest, state tree and tensor bytes by name, each checked by the object above it."""
    top = body_of(run / f"snapshots/{snapshot}.json")
    assert top["snapshot"] == snapshot and top["run_id"] == body_of(run / "run.json")["run_id"]
    reference = top["parts"][0]
    whole = (run / reference["key"]).read_bytes()
    assert (len(whole), blake3(whole).hexdigest()) == (reference["length"], reference["digest"])
    table = body_of(run / reference["key"])
    assert table["snapshot"] == snapshot
    packs = {one["key"]: one for one in top["packs"]}
    tensors = []
    for _name, _dtype, _shape, _stride, [[pack_index, offset, length, _start, _sides, digest]] in table["tensors"]:
        of = packs[table["packs"][pack_index]]
        assert of["header_length"] <= offset <= of["length"] - length
        data = (run / of["key"]).read_bytes()[offset : offset + length]
        assert len(data) == length and blake3(data).hexdigest() == digest
        tensors.append(data)
    by_name = {entry[0]: data for entry, data in zip(table["tensors"], tensors, strict=True)}
    return top, plain(table["tree"], tensors), by_name


@pytest.fixture
def run(tmp_path: Path) -> Path:
    store = local_store(tmp_path)
    ensure_run(store)
    parent = previous = None
    for number, ids in ((1, IDS[:2]), (2, IDS[2:])):
        begin(store, number, parent)
        for one in ids:
            made, data = make.staged(one)
            run_id = ensure_run(store).run_id
            manifest, previous = upload(store, made, data, run_id=run_id, parent=parent, previous=previous)
            commit(store, manifest)
            parent = one
    return tmp_path


def test_a_snapshot_is_read_by_the_page_alone(run: Path) -> None:
    lineage = follow(run, 2)
    assert lineage == [str(one) for one in reversed(IDS)]
    top, values, tensors = read(run, lineage[0])
    assert (top["parent"], top["step"], top["reason"]) == (lineage[1], 20, "notice")
    assert values["run"]["plain"] == [None, True, 1, -(2**53), 1.5, -0.0, 1e300, "é\n", {"a": {}}]
    assert values["run"]["int"] == 2**64 + 1 and values["run"]["float"][1:] == [float("inf"), -float("inf")]
    assert values["run"]["tuple"] == ("$tuple", [1, ("$tuple", [2])])
    assert values["objects"]["model"]["state"]["F32"] == make.raw("F32") == tensors["model/F32"]
    assert values["objects"]["model"]["state"]["changes"] == (20).to_bytes(8, "little")


def test_the_library_finds_the_same_tensors_in_the_packs(run: Path) -> None:
    top, _, tensors = read(run, str(IDS[3]))
    own, older = (one["key"] for one in top["packs"])
    assert str(IDS[3]) in own and str(IDS[0]) in older, "what did not change is in the first snapshot's pack"
    with safe_open(run / own, framework="numpy") as file:
        assert set(file.keys()) == {"model/changes"}
        assert file.get_tensor("model/changes").tobytes() == tensors["model/changes"]
    with safe_open(run / older, framework="numpy") as file:
        assert set(file.keys()) == set(tensors)
        for name in ("model/F32", "model/I64", "model/C128", "run.array", "model/BOOL"):
            assert file.get_tensor(name).tobytes() == tensors[name]
        assert file.get_tensor("model/C128").shape == (2, 3, 2)
    assert all(one["header_length"] % 8 == 0 for one in top["packs"])


def test_what_is_shared_stays_readable_without_the_snapshots_in_between(run: Path) -> None:
    for one in (IDS[0], IDS[1], IDS[2]):
        (run / f"snapshots/{one}.json").unlink()
        (run / f"packs/{one}/rank-00000.json").unlink()
    (run / f"packs/{IDS[1]}/rank-00000.safetensors").unlink()
    _, _, tensors = read(run, str(IDS[3]))
    assert tensors["model/F64"] == make.raw("F64")


def history_of(run: Path, snapshot: str) -> dict[str, list[tuple[int, int, Any]]]:
    """`set/name` → (step, epoch, value) in order."""
    rows: list[tuple[str, bool, int, int, Any]] = []
    for reference in body_of(run / f"snapshots/{snapshot}.json")["history"]:
        whole = (run / reference["key"]).read_bytes()
        assert (len(whole), blake3(whole).hexdigest()) == (reference["length"], reference["digest"])
        with safe_open(run / reference["key"], framework="numpy") as file:
            series = json.loads(file.metadata()["series"])
            columns = [file.get_tensor(name) for name in ("series", "step", "epoch", "value")]
            payload = file.get_tensor("payload").tobytes() if "payload" in file.keys() else b""  # noqa: SIM118
        assert {len(column) for column in columns} == {reference["rows"]} and len(payload) == reference["payload_bytes"]
        for ident, step, epoch, value in zip(*columns, strict=True):
            set_name, name, kind, *flags = series[str(ident)]
            if kind == "values":
                encoded, payload = payload[: int(value)], payload[int(value) :]
                end = 4 + int.from_bytes(encoded[:4], "little")
                value = plain(json.loads(encoded[4:end])[0], [encoded[end:]])  # noqa: PLW2901
            rows.append((f"{set_name}/{name}", "given" in flags, step, epoch, value))
    last = {(path, step, None if given else epoch): (epoch, value) for path, given, step, epoch, value in rows}
    found: dict[str, list[tuple[int, int, Any]]] = {}
    for (path, step, _), (epoch, value) in sorted(last.items(), key=lambda one: one[0][:2]):
        found.setdefault(path, []).append((step, epoch, value))
    return found


def test_the_history_is_read_by_the_page_alone(run: Path) -> None:
    found = history_of(run, str(IDS[3]))
    assert len(body_of(run / f"snapshots/{IDS[3]}.json")["history"]) == 2
    expected = make.metrics(20)
    assert set(found) == {"train/loss", "valid/top1", "valid/table"}
    for path, points in found.items():
        series = expected[path.split("/")[0]][path.split("/")[1]]
        steps, epochs, values = zip(*points, strict=True)
        assert (list(steps), list(epochs)) == (series.steps, series.epochs)
        if path != "valid/table":
            assert np.array(values).tobytes() == np.array(list(series)).tobytes()
    assert found["valid/table"][6] == (6, -1, "none") and found["valid/table"][5][2] == {"é": make.TABLE.tobytes()}


def names_of(kind: type) -> set[str]:
    return set(getattr(kind, "_fields", ())) or {field.name for field in dataclasses.fields(kind)}


def test_the_page_names_every_field() -> None:
    kinds = [
        records.RunRecord,
        records.Claim,
        records.Holder,
        records.Base,
        records.Heartbeat,
        records.Pin,
        records.Tombstone,
        manifest.Manifest,
        manifest.PartRef,
        manifest.PackRef,
        segments.SegmentRef,
        facts.Best,
        part.Part,
        part.TensorEntry,
        part.Chunk,
    ]
    quoted = set(re.findall(r"`([^`]+)`", PAGE))
    missing = {name for kind in kinds for name in names_of(kind)} - quoted
    assert not missing


def test_the_page_has_every_tag_dtype_reason_and_limit() -> None:
    built_in = set(tree._TAGS)
    leaves = (Path(tree.__file__).parents[1] / "training" / "leaves.py").read_text()
    tags = built_in | set(re.findall(r'"(\$[\w.]+)"', leaves))
    quoted = set(re.findall(r"`([^`]+)`", PAGE))
    assert not {*tags, *pack.ITEM_BYTES, *facts.REASONS} - quoted
    assert records.MAX_RECORD_BYTES == 64 << 10 and "records 64 KiB" in PAGE
    assert manifest.MAX_MANIFEST_BYTES == 1 << 20 and "a manifest 1 MiB" in PAGE
    assert part.MAX_PART_BYTES == 256 << 20 and "a part 256 MiB" in PAGE
    assert pack.MAX_HEADER_BYTES == 100 * 10**6 and "header 100 MB" in PAGE
    assert pack.MAX_TENSORS == 10**6 and "1,000,000 tensors" in PAGE
    assert pack.MAX_TENSOR_BYTES == 2**50 and pack.MAX_DIMENSIONS == 64
    assert tree.MAX_DEPTH == 100 and "at most 100 deep" in PAGE
    assert envelope.FORMAT == 1
