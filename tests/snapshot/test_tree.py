from __future__ import annotations

import enum
import json
import math
import struct
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spotckpt.errors import Corrupt, EncodeError, LimitExceeded
from spotckpt.snapshot.tree import ARRAY_DTYPES, MAX_DEPTH, decode, encode
from tests.snapshot.bucket import raises_naming


class Color(enum.Enum):
    RED = 1
    GREEN = "g"


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 1


def through_json(value: object) -> Any:
    """Encoded, written as JSON, read and decoded; arrays through a table of raw bytes."""
    table: list[tuple[bytes, str, tuple[int, ...]]] = []

    def put(array: np.ndarray, path: str) -> int:
        assert array.flags.c_contiguous and array.dtype.str in ARRAY_DTYPES, path
        table.append((array.tobytes(), array.dtype.str, array.shape))
        return len(table) - 1

    def get(index: int) -> np.ndarray:
        data, dtype, shape = table[index]
        return np.frombuffer(bytearray(data), dtype=dtype).reshape(shape)

    text = json.dumps(encode(value, path="v", array=put), allow_nan=False)
    return decode(json.loads(text), array=get)


def same(a: Any, b: Any) -> bool:  # noqa: PLR0911
    """Equal, of exactly the same types throughout, floats bit by bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(k, m) and same(v, w) for (k, v), (m, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, (list, tuple, deque)):
        bound = getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        return bound and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (set, frozenset)):
        return a == b and Counter(map(type, a)) == Counter(map(type, b))
    if isinstance(a, np.ndarray):
        order = a.flags.f_contiguous == b.flags.f_contiguous
        return order and a.dtype.str == b.dtype.str and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a == b


any_text = st.text(st.characters())  # lone surrogates too
hashable = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    any_text,
    st.binary(),
    st.sampled_from([*Color, *Level]),
    st.tuples(st.integers(), any_text),
    st.frozensets(st.integers()),
)
dtypes = st.one_of(
    hnp.scalar_dtypes().filter(lambda d: d.str[1:] not in ("f16", "c32")),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(),
)
number_arrays = hnp.arrays(
    hnp.scalar_dtypes().filter(lambda d: d.str[1:] not in ("f16", "c32")),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
)
leaves = st.one_of(
    hashable,
    st.floats(),
    st.complex_numbers(),
    st.binary().map(bytearray),
    st.integers(min_value=2**52, max_value=2**4000),
    number_arrays,
    number_arrays.map(np.asfortranarray),
    number_arrays.map(lambda array: array[()] if array.ndim == 0 else array),
    hnp.arrays(st.sampled_from(["<U3", "S4", "<M8[ns]", ">i4", ">U2"]), hnp.array_shapes(max_side=3)),
    dtypes,
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.lists(inner, max_size=3).map(lambda found: deque(found, maxlen=3)),
        st.dictionaries(any_text, inner, max_size=4),
        st.dictionaries(st.sampled_from(["$tensor", "$", "$dict", "a"]), inner, max_size=3),
        st.dictionaries(hashable, inner, max_size=4),
        st.dictionaries(hashable, inner, max_size=4).map(OrderedDict),
        st.dictionaries(hashable, st.integers(), max_size=4).map(Counter),
        st.sets(hashable, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_what_is_decoded_is_what_was_encoded(value: object) -> None:
    assert same(through_json(value), value)


def test_special_floats_keep_every_bit() -> None:
    payload = struct.unpack(">d", bytes.fromhex("7ff80000deadbeef"))[0]
    for value in (math.nan, -math.nan, payload, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1):
        assert same(through_json(value), value)
    assert same(through_json(complex(-0.0, math.nan)), complex(-0.0, math.nan))


def test_plain_json_stands_for_itself() -> None:
    value = {"a": [1, 2.5, None, True, "x"], "b": {"c": -(2**53)}}
    assert encode(value) == value
    assert encode({"$a": 1}) == {"$dict": [["$a", 1]]}
    assert encode({1: 2}) == {"$dict": [[1, 2]]}
    assert encode(2**53 + 1) == {"$int": "0x20000000000001"}


def test_versions_of_modules_travel_with_an_ordered_dict() -> None:
    value: Any = OrderedDict(a=1)
    value._metadata = OrderedDict([("", {"version": 2})])
    found = through_json({"model": value})["model"]
    assert found == value and found._metadata == value._metadata and type(found._metadata) is OrderedDict
    value.other = 1
    with raises_naming(EncodeError, "v", "other"):
        encode(value, path="v")


def test_equal_sets_give_equal_bytes() -> None:
    assert json.dumps(encode({"b", "a", "c"})) == json.dumps(encode({"c", "b", "a"})) == '{"$set": ["a", "b", "c"]}'


def test_the_same_array_keeps_its_memory_order() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    assert through_json(np.asfortranarray(array)).flags.f_contiguous
    strided = array[:, ::2]
    assert through_json(strided).tobytes() == strided.tobytes()
    assert through_json(array).flags.writeable


class Odd(dict):
    pass


def test_refused_values_are_named_by_their_path() -> None:
    cases: list[tuple[object, str]] = [
        ({"tokenizer": {"fn": len}}, r"vars\.tokenizer\.fn: builtin_function_or_method; "),
        ({"a b": [0, Path("x")]}, r"vars\['a b'\]\[1\]: pathlib.*Path; "),
        ({"x": Odd()}, r"vars\.x: tests\.snapshot\.test_tree\.Odd; "),
        ({3: {object()}}, r"vars\[3\]\[0\]: object; "),
        ({"n": np.array([object()])}, r"vars\.n: numpy dtype object; "),
        ({"n": np.zeros(2, dtype=[("a", "i4")])}, r"vars\.n: numpy dtype "),
        ({"n": np.longdouble(1)}, r"vars\.n: numpy dtype "),
        ({(1, len): 2}, r"vars: key .*\[1\]: builtin"),
    ]
    for value, message in cases:
        with pytest.raises(EncodeError, match=f"^{message}"):
            encode(value, path="vars", array=lambda array, path: 0)


def test_an_enum_that_nobody_could_find_again_is_refused() -> None:
    class Local(enum.Enum):
        A = 1

    with raises_naming(EncodeError, "v", "Local"):
        encode(Local.A, path="v")
    flag = enum.Flag("flag", "A B", module=__name__, qualname="nowhere")
    with raises_naming(EncodeError, "v"):
        encode(flag.A | flag.B, path="v")


def test_cycles_and_depth_are_refused() -> None:
    cycle: list[Any] = []
    cycle.append({"a": cycle})
    with raises_naming(EncodeError, r"v\[0\].a", "itself"):
        encode(cycle, path="v")
    twice = [1]
    assert through_json([twice, twice]) == [[1], [1]]
    deep: Any = 0
    for _ in range(MAX_DEPTH):
        deep = (deep,)
    assert same(through_json(deep), deep)
    with raises_naming(EncodeError, "deeper"):
        encode([deep], path="v")


@pytest.mark.fault(70)
def test_a_tree_that_is_too_deep_to_be_ours_is_refused() -> None:
    tree: Any = 0
    for _ in range(2000):
        tree = {"$tuple": [tree]}
    with raises_naming(LimitExceeded, "state tree", "too deeply"):
        decode(tree)


def test_leaves_go_through_the_hook() -> None:
    kept: list[object] = []

    def leaf(value: object, path: str) -> dict[str, Any] | None:
        if not isinstance(value, Path):
            return None
        kept.append((path, value))
        return {"$path": str(value)}

    tree = encode({"a": [Path("x")]}, path="v", leaf=leaf)
    assert tree == {"a": [{"$path": "x"}]} and kept == [("v.a[0]", Path("x"))]
    assert decode(tree, leaf=lambda node: Path(node["$path"])) == {"a": [Path("x")]}


@pytest.mark.parametrize(
    "tree",
    [
        {"$unknown": 1},
        {"$tuple": [], "$list": []},
        {"$tuple": "ab"},
        {"$int": "7"[:0]},
        {"$int": 7},
        {"$float": "00"},
        {"$complex": [1.0]},
        {"$complex": ["a", 1.0]},
        {"$bytes": "?"},
        {"$bytes": 1},
        {"$dict": [[1]]},
        {"$dict": [[1, 2], [1, 3]]},
        {"$dict": [[[], 2]]},
        {"$dict": {"a": 1}},
        {"$set": [[]]},
        {"$deque": [1, 2], "maxlen": 1},
        {"$deque": [1]},
        {"$enum": ["os", "system", "x"]},
        {"$enum": ["tests.snapshot.test_tree", "Color", "BLUE"]},
        {"$enum": ["no.such.module", "Color", "RED"]},
        {"$enum": ["antigravity", "x", "x"]},
        {"$enum": 5},
        {"$dtype": "O"},
        {"$dtype": "f4,f4"},
        {"$dtype": 3},
        {"$scalar": "00", "dtype": "<f4"},
        {"$scalar": "00"},
        {"$array": 0, "dtype": "<f4", "shape": [3]},
        {"$array": "0", "dtype": "<f4", "shape": [1]},
    ],
    ids=json.dumps,
)
def test_malformed_trees_are_corrupt(tree: object) -> None:
    with pytest.raises(Corrupt, match="state tree"):
        decode([{"x": tree}], array=lambda index: np.zeros(1, dtype="<f4"))


@pytest.mark.fault(69)
def test_decoding_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "this", raising=False)
    with pytest.raises(Corrupt):
        decode({"$enum": ["this", "s", "x"]})
    assert "this" not in sys.modules
