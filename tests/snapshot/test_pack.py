from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.errors import Corrupt, EncodeError, LimitExceeded
from spotckpt.snapshot.envelope import digest, wrap
from spotckpt.snapshot.keys import pack_key, part_key
from spotckpt.snapshot.pack import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    TensorSpec,
    header_length,
    layout,
    read_header,
    size_bytes,
    stored_as,
)
from spotckpt.snapshot.part import Chunk, Part, TensorEntry
from spotckpt.snapshot.staged import Staged
from tests.snapshot.bucket import arrays_of, raises_naming, sid, staged

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
tables = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(sorted(ITEM_BYTES)), shapes),
    unique_by=lambda entry: entry[0],
    max_size=12,
).filter(lambda table: all(name != "__metadata__" for name, _, _ in table))


@given(tables)
def test_a_layout_has_no_holes_and_aligns_every_tensor(table: list[tuple[str, str, tuple[int, ...]]]) -> None:
    place = layout([TensorSpec(*row) for row in table])
    assert len(place.header) % 8 == 0 and header_length(place.header, key="k") == len(place.header)
    end = 0
    for index in place.order:
        _, dtype, shape = table[index]
        assert place.offsets[index] == end
        assert end % min(8, ITEM_BYTES[dtype]) == 0
        end += math.prod(shape) * ITEM_BYTES[dtype]
    assert end == place.data_bytes
    stored = {one.name: one for one in read_header(place.header, key="k")}
    for (name, dtype, shape), offset in zip(table, place.offsets, strict=True):
        assert (stored[name].dtype, stored[name].shape) == stored_as(dtype, shape)
        assert stored[name].start == offset


def test_the_library_reads_our_packs() -> None:
    arrays = arrays_of(3)
    made, data = staged(sid(1, 0), arrays)
    found = safetensors.numpy.load(made.layout().header + bytes(data))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].tobytes() == array.tobytes() and found[name].shape == array.shape
    assert safetensors.numpy.load(layout([]).header) == {}


def test_we_read_the_librarys_headers() -> None:
    data = safetensors.numpy.save({"a": np.zeros((2, 3), "f4"), "b": np.ones(4, "i8")}, {"who": "them"})
    found = read_header(data[: header_length(data, key="k")], key="k")
    assert [(one.name, one.dtype, one.shape) for one in found] == [("b", "I64", (4,)), ("a", "F32", (2, 3))]


def header(body: object) -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return len(text).to_bytes(8, "little") + text


def one(**change: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        header(b"{"),
        header([]),
        header({"a": 1}),
        header(one(shape=[3])),
        header(one(shape="2")),
        header(one(shape=[-2])),
        header(one(data_offsets=[0])),
        header(one(data_offsets=[4, 12])),
        header(one(dtype=3)),
        header({**one(), "b": {"dtype": "U8", "shape": [1], "data_offsets": [4, 5]}}),
        header(one())[:-1],
        header(one()) + b" ",
        header(b"[" * 100_000),
    ],
    ids=lambda data: repr(data[8:60]),
)
def test_malformed_headers_are_corrupt(data: bytes) -> None:
    with raises_naming(Corrupt, "packs/x"):
        read_header(data, key="packs/x")


@pytest.mark.fault(70)
def test_sizes_are_capped_before_anything_is_allocated() -> None:
    with raises_naming(LimitExceeded, "packs/x"):
        header_length((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), key="packs/x")
    for dtype, shape in (("F32", (2**40, 0)), ("F32", (2**63,)), ("F32", (1,) * 65), ("U8", (2**25, 2**26)), ("?", ())):
        if shape == (2**40, 0):
            assert size_bytes(dtype, shape) == 0
            continue
        with pytest.raises(LimitExceeded):
            size_bytes(dtype, shape)
    with pytest.raises(LimitExceeded):
        size_bytes("F32", (2**40, 2**40, 0))


def test_names_twice_or_without_text_are_refused() -> None:
    for names in (["a", "a"], ["__metadata__"], ["\ud800"]):
        with pytest.raises(EncodeError):
            layout([TensorSpec(name, "F32", (1,)) for name in names])


def entry(**change: object) -> TensorEntry:
    chunk = Chunk(0, 80, 24, (0, 0), (2, 3), digest(b"x"))
    return TensorEntry("w", "F32", (2, 3), None, (chunk,))._replace(**change)


def test_a_part_and_a_staged_come_back() -> None:
    snapshot = sid(1, 2)
    part = Part(snapshot, 0, (pack_key(snapshot),), {"a": [{"$tensor": 0}]}, (entry(stride=(1, 2)),))
    assert Part.from_bytes(part.to_bytes(), key=part_key(snapshot)) == part
    made, _ = staged(snapshot, arrays_of(1), latest={"a/b": math.inf}, extra={"x": 1})
    assert Staged.from_bytes(made.to_bytes()) == made


@pytest.mark.fault(70)
@pytest.mark.parametrize(
    "change",
    [
        {"shape": (2, 4)},
        {"shape": (6,)},
        {"dtype": "F64"},
        {"dtype": "O"},
        {"shape": (2**40, 2**40)},
        {"stride": (1,)},
        {"chunks": ()},
        {"chunks": (Chunk(0, 80, 24, (1, 0), (2, 3), digest(b"x")),)},
        {"chunks": (Chunk(0, 80, 25, (0, 0), (2, 3), digest(b"x")),)},
        {"chunks": (Chunk(0, 80, 24, (0,), (6,), digest(b"x")),)},
        {"chunks": (Chunk(1, 80, 24, (0, 0), (2, 3), digest(b"x")),)},
        {"chunks": (Chunk(0, 80, 24, (0, 0), (2, 3), ""),)},
        {"chunks": (Chunk(0, 80, 24, (0, 0), (2, 3), digest(b"x")),) * 2},
        {"chunks": (Chunk(0, 2**64, 24, (0, 0), (2, 3), digest(b"x")),)},
    ],
    ids=repr,
)
def test_tables_that_contradict_themselves_are_refused(change: dict) -> None:
    snapshot = sid(1, 2)
    part = Part(snapshot, 0, (pack_key(snapshot),), {}, (entry(**change),))
    with pytest.raises((Corrupt, LimitExceeded)):
        Part.from_bytes(part.to_bytes(), key=part_key(snapshot))


@pytest.mark.fault(71)
@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "packs/\0", "run.json", part_key(sid(1, 1))])
def test_a_key_outside_the_grammar_in_a_part_is_corrupt_and_named(key: str) -> None:
    snapshot = sid(1, 2)
    part = Part(snapshot, 0, (key,), {}, ())
    with pytest.raises(Corrupt) as caught:
        Part.from_bytes(part.to_bytes(), key=part_key(snapshot))
    assert repr(key) in str(caught.value) and part_key(snapshot) in str(caught.value)


def test_a_part_at_another_key_is_corrupt() -> None:
    part = Part(sid(1, 2), 0, (), {}, ())
    for key in (part_key(sid(1, 3)), part_key(sid(1, 2), 1)):
        with raises_naming(Corrupt, key):
            Part.from_bytes(part.to_bytes(), key=key)


@pytest.mark.parametrize(
    "change", [{"data_bytes": 1}, {"specs": ()}, {"step": 7}, {"reason": "whim"}, {"id": "x"}], ids=repr
)
def test_a_staged_that_contradicts_itself_is_corrupt(change: dict) -> None:
    made, _ = staged(sid(1, 2), arrays_of(1))
    with raises_naming(Corrupt, "staged.json"):
        Staged.from_bytes(replace(made, **change).to_bytes())
    assert wrap({}) != made.to_bytes()


@pytest.mark.fault(70)
def test_a_hundred_thousand_tensors_are_read() -> None:
    snapshot = sid(1, 2)
    one_of_them = ["t", "F32", [], None, [[0, 800, 4, [], [], digest(b"x")]]]
    body = {"snapshot": str(snapshot), "rank": 0, "packs": [pack_key(snapshot)], "tree": {}}
    data = wrap({**body, "tensors": [one_of_them] * 100_000})
    assert len(Part.from_bytes(data, key=part_key(snapshot)).tensors) == 100_000
    with raises_naming(LimitExceeded, part_key(snapshot)):
        Part.from_bytes(wrap({**body, "tensors": [0] * (MAX_TENSORS + 1)}), key=part_key(snapshot))
