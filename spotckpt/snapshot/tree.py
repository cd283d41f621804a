"""The state tree: Python values as JSON and back, exactly, without pickle and without torch.

Plain JSON stands for itself; everything else is an object with one `"$..."` tag (and its fields). Exact types only: a
subclass that is not listed is refused, since it would come back as something else. docs/format.md lists every tag.
"""

from __future__ import annotations

import base64
import enum
import struct
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spotckpt.errors import Corrupt, EncodeError, LimitExceeded

if TYPE_CHECKING:
    import numpy

MAX_DEPTH = 100
_PLAIN_INT = 2**53
"""Integers up to here are exact in every JSON reader (RFC 8259, section 6)."""

_ARRAY_KINDS = "biufcSUmM"
_HINT = "track it with a state_dict, or store plain values, tensors and arrays"

Leaf = Callable[[Any, str], "dict[str, Any] | None"]
"""(value, path) → an object with a `"$..."` tag of its own, or None: not mine."""
ArrayLeaf = Callable[["numpy.ndarray[Any, Any]", str], int]
"""(array, path) → its index in the tensor table. The array is C-contiguous and of a dtype of `ARRAY_DTYPES`."""
DecodeLeaf = Callable[["dict[str, Any]"], Any]
"""The inverse of `Leaf` for tags that are not built in; raises Corrupt for one it does not know either."""
DecodeArray = Callable[[int], "numpy.ndarray[Any, Any]"]
"""Index in the tensor table → the array, writable and owned by the caller."""

ARRAY_DTYPES = {
    "|b1": "BOOL",
    "|u1": "U8",
    "|i1": "I8",
    "<i2": "I16",
    "<u2": "U16",
    "<f2": "F16",
    "<i4": "I32",
    "<u4": "U32",
    "<f4": "F32",
    "<i8": "I64",
    "<u8": "U64",
    "<f8": "F64",
    "<c8": "C64",
    "<c16": "C128",
}
"""numpy's `dtype.str` → dtype in the tensor table. Arrays of other dtypes are stored as U8."""


def encode(value: object, *, path: str = "", leaf: Leaf | None = None, array: ArrayLeaf | None = None) -> Any:
    """The value as JSON.

    Args:
        value: anything that docs/format.md lists, or that `leaf` takes.
        path: what errors call the value, as in `vars`.
        leaf: asked for every value that is not built in.
        array: where the bytes of numpy arrays go; without it arrays are refused.

    Raises:
        EncodeError: `vars.tokenizer.fn: function; ...`: a value that cannot be held, a cycle, or depth over 100.
    """
    return _Encoder(leaf, array).encode(value, path, ())


def decode(tree: Any, *, leaf: DecodeLeaf | None = None, array: DecodeArray | None = None) -> Any:
    """The value that `encode` was given: equal, and of the same types throughout.

    Raises:
        Corrupt: an unknown tag or a malformed one. Nothing is imported and nothing of the tree is called.
        LimitExceeded: it is nested deeper than anything that `encode` writes.
    """
    with bounded_depth():
        return _Decoder(leaf, array).decode(tree)


@contextmanager
def bounded_depth() -> Iterator[None]:
    """Inside, who goes through a tree that is too deep for it raises LimitExceeded: `encode` writes none."""
    try:
        yield
    except RecursionError as error:
        raise LimitExceeded("state tree: nested too deeply", hint="it was not written by us") from error


def join(path: str, key: object) -> str:
    """The path of a member: `vars.a`, `vars[3]`, `vars['a b']`."""
    if type(key) is str and key.isidentifier():
        return f"{path}.{key}" if path else key
    return f"{path}[{key!r:.60}]"


class _Encoder:
    def __init__(self, leaf: Leaf | None, array: ArrayLeaf | None) -> None:
        self.leaf = leaf
        self.array = array

    def encode(self, value: Any, path: str, above: tuple[int, ...]) -> Any:
        """`above` holds the identities of the containers around the value."""
        known = _BUILT_IN.get(type(value))
        if known is not None:
            if len(above) > MAX_DEPTH:
                raise EncodeError(f"{path:.200}: nested deeper than {MAX_DEPTH}", hint="store something flatter")
            if id(value) in above:
                raise EncodeError(f"{path:.200}: contains itself", hint="store a value without cycles")
            return known(self, value, path, above)
        encoded = self.leaf(value, path) if self.leaf else None
        if encoded is None:
            encoded = self.foreign(value, path)
        if encoded is None:
            raise EncodeError(f"{path}: {_name(type(value))}", hint=_HINT)
        return encoded

    def foreign(self, value: Any, path: str) -> Any:
        if isinstance(value, enum.Enum):
            return _enum_to_json(value, path)
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return None
        if isinstance(value, numpy.dtype):
            return {"$dtype": _dtype_text(value, path)}
        if type(value) is numpy.ndarray:
            return self.ndarray(value, path)
        if isinstance(value, numpy.generic) and type(value) is value.dtype.type:
            return {"$scalar": value.tobytes().hex(), "dtype": _dtype_text(value.dtype, path)}
        return None

    def ndarray(self, value: numpy.ndarray[Any, Any], path: str) -> Any:
        import numpy

        dtype = _dtype_text(value.dtype, path)
        if self.array is None:
            raise EncodeError(f"{path}: an array cannot stand here", hint="track it, or put it into run.vars")
        node = {"dtype": dtype, "shape": list(value.shape)}
        if value.flags.f_contiguous and not value.flags.c_contiguous:
            node["order"] = "F"
            value = value.T
        value = numpy.ascontiguousarray(value).reshape(value.shape)
        if dtype not in ARRAY_DTYPES:
            value = numpy.frombuffer(value.tobytes(), dtype=numpy.uint8)
        return {"$array": self.array(value, path), **node}

    def members(self, values: Iterable[Any], path: str, above: tuple[int, ...]) -> list[Any]:
        inside = (*above, id(values))
        return [self.encode(value, f"{path}[{index}]", inside) for index, value in enumerate(values)]

    def pairs(self, value: dict[Any, Any], path: str, above: tuple[int, ...]) -> list[Any]:
        inside = (*above, id(value))
        return [
            [self.key(key, path, inside), self.encode(item, join(path, key), inside)] for key, item in value.items()
        ]

    def key(self, key: Any, path: str, above: tuple[int, ...]) -> Any:
        return key if type(key) is str else self.encode(key, f"{path}: key {key!r:.60}", above)

    def dict(self, value: dict[Any, Any], path: str, above: tuple[int, ...]) -> Any:
        if all(type(key) is str and not key.startswith("$") for key in value):
            inside = (*above, id(value))
            return {key: self.encode(item, join(path, key), inside) for key, item in value.items()}
        return {"$dict": self.pairs(value, path, above)}

    def ordered(self, value: OrderedDict[Any, Any], path: str, above: tuple[int, ...]) -> Any:
        extra = vars(value)
        if extra.keys() - {"_metadata"}:
            raise EncodeError(f"{path}: an OrderedDict with the attributes {sorted(extra)}", hint="use a plain dict")
        node = {"$ordered": self.pairs(value, path, above)}
        if extra:  # torch.nn.Module.state_dict keeps the modules' versions there
            node["metadata"] = self.encode(extra["_metadata"], f"{path}._metadata", (*above, id(value)))
        return node

    def sorted(self, values: Iterable[Any], path: str, above: tuple[int, ...]) -> list[Any]:
        # a set's own order differs between processes, and equal states should give equal bytes
        return sorted(self.members(values, path, above), key=repr)


# Tables of functions, not of bound methods: a codec that held those would be a cycle, and every tensor of a state would
# stay in memory until the garbage collector came by.

_BUILT_IN: dict[type, Callable[[_Encoder, Any, str, tuple[int, ...]], Any]] = {
    **dict.fromkeys((type(None), bool, str), lambda codec, value, path, above: value),
    int: lambda codec, value, path, above: _int_to_json(value),
    float: lambda codec, value, path, above: _float_to_json(value),
    complex: lambda codec, value, path, above: {"$complex": [_float_to_json(value.real), _float_to_json(value.imag)]},
    bytes: lambda codec, value, path, above: {"$bytes": base64.b64encode(value).decode()},
    bytearray: lambda codec, value, path, above: {"$bytearray": base64.b64encode(value).decode()},
    list: _Encoder.members,
    tuple: lambda codec, value, path, above: {"$tuple": codec.members(value, path, above)},
    dict: _Encoder.dict,
    OrderedDict: _Encoder.ordered,
    Counter: lambda codec, value, path, above: {"$counter": codec.pairs(value, path, above)},
    deque: lambda codec, value, path, above: {"$deque": codec.members(value, path, above), "maxlen": value.maxlen},
    set: lambda codec, value, path, above: {"$set": codec.sorted(value, path, above)},
    frozenset: lambda codec, value, path, above: {"$frozenset": codec.sorted(value, path, above)},
}


class _Decoder:
    def __init__(self, leaf: DecodeLeaf | None, array: DecodeArray | None) -> None:
        self.leaf = leaf
        self.array = array

    def decode(self, tree: Any) -> Any:
        if type(tree) is list:
            return self.members(tree)
        if type(tree) is not dict:
            return tree
        tags = [key for key in tree if key.startswith("$")]
        if not tags:
            return {key: self.decode(value) for key, value in tree.items()}
        return self.tagged(tags, tree)

    def tagged(self, tags: list[str], node: dict[str, Any]) -> Any:
        known = _TAGS.get(tags[0])
        if len(tags) > 1 or (known is None and self.leaf is None):
            raise Corrupt(f"state tree: tag {' '.join(tags)} is not known", hint="a newer spotckpt may read it")
        if known is None:
            assert self.leaf is not None
            return self.leaf(node)
        try:
            return known(self, node)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise Corrupt(f"state tree: {tags[0]} is malformed: {error}", hint="use another snapshot") from error

    def members(self, values: Any) -> list[Any]:
        if type(values) is not list:
            raise TypeError("a list was expected")
        return [self.decode(value) for value in values]

    def exactly(self, values: Any, count: int) -> list[Any]:
        found = self.members(values)
        if len(found) != count or any(type(value) is not float for value in found):
            raise ValueError(f"{count} floats were expected")
        return found

    def pairs(self, values: Any, into: Any) -> Any:
        if type(values) is not list:
            raise TypeError("a list was expected")
        for key, value in values:
            into[self.decode(key)] = self.decode(value)
        if len(into) != len(values):
            raise ValueError("a key stands there twice")
        return into

    def ordered(self, node: dict[str, Any]) -> Any:
        value: Any = self.pairs(node["$ordered"], OrderedDict())
        if "metadata" in node:
            value._metadata = self.decode(node["metadata"])
        return value

    def deque(self, node: dict[str, Any]) -> Any:
        values, maxlen = self.members(node["$deque"]), node["maxlen"]
        if maxlen is not None and (type(maxlen) is not int or maxlen < len(values)):
            raise ValueError("maxlen is too small")
        return deque(values, maxlen)

    def ndarray(self, node: dict[str, Any]) -> Any:
        index, dtype, shape = node["$array"], _dtype(node["dtype"]), node["shape"]
        if self.array is None or type(index) is not int:
            raise ValueError("there is no table of arrays")
        value = self.array(index)
        if dtype.str not in ARRAY_DTYPES:
            value = value.view(dtype) if dtype.itemsize else _empty_items(shape, dtype)
        if node.get("order") == "F":
            return value.reshape(shape[::-1]).T
        return value.reshape(shape)


_TAGS: dict[str, Callable[[_Decoder, dict[str, Any]], Any]] = {
    "$int": lambda codec, node: int(node["$int"], 16),
    "$float": lambda codec, node: struct.unpack(">d", _hex(node["$float"], 8))[0],
    "$complex": lambda codec, node: complex(*codec.exactly(node["$complex"], 2)),
    "$bytes": lambda codec, node: base64.b64decode(node["$bytes"], validate=True),
    "$bytearray": lambda codec, node: bytearray(base64.b64decode(node["$bytearray"], validate=True)),
    "$tuple": lambda codec, node: tuple(codec.members(node["$tuple"])),
    "$dict": lambda codec, node: codec.pairs(node["$dict"], {}),
    "$ordered": _Decoder.ordered,
    "$counter": lambda codec, node: codec.pairs(node["$counter"], Counter()),
    "$deque": _Decoder.deque,
    "$set": lambda codec, node: set(codec.members(node["$set"])),
    "$frozenset": lambda codec, node: frozenset(codec.members(node["$frozenset"])),
    "$enum": lambda codec, node: _enum_from_json(node),
    "$dtype": lambda codec, node: _dtype(node["$dtype"]),
    "$scalar": lambda codec, node: _scalar_from_json(node),
    "$array": _Decoder.ndarray,
}


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _int_to_json(value: int) -> Any:
    # hexadecimal: decimal conversion of long integers is limited (sys.set_int_max_str_digits) and quadratic
    return value if -_PLAIN_INT <= value <= _PLAIN_INT else {"$int": hex(value)}


def _float_to_json(value: float) -> Any:
    if value - value == 0.0:  # finite; repr is the shortest text that reads back as the same float
        return value
    return {"$float": struct.pack(">d", value).hex()}


def _hex(text: Any, count: int) -> bytes:
    data = bytes.fromhex(text)
    if len(data) != count:
        raise ValueError(f"{count} bytes were expected")
    return data


def _enum_to_json(value: enum.Enum, path: str) -> Any:
    kind = type(value)
    if _enum_class(kind.__module__, kind.__qualname__) is not kind or kind.__members__.get(value.name) is not value:
        raise EncodeError(f"{path}: {value!r} cannot be found by its name", hint="define the enum in a module")
    return {"$enum": [kind.__module__, kind.__qualname__, value.name]}


def _enum_class(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        # vars(), not getattr(): a lazy module would import something
        found = vars(found).get(name) if hasattr(found, "__dict__") else None
    return found


def _enum_from_json(node: dict[str, Any]) -> enum.Enum:
    module, qualname, name = node["$enum"]
    kind = _enum_class(module, qualname)
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise ValueError(f"{module}.{qualname} is not an enum of this program; import its module first")
    return kind.__members__[name]


def _dtype_text(dtype: numpy.dtype[Any], path: str) -> str:
    if dtype.kind not in _ARRAY_KINDS or dtype.str[1:] in ("f16", "c32"):  # long double differs between platforms
        raise EncodeError(f"{path}: numpy dtype {dtype}", hint="store numbers, strings of fixed length or times")
    return dtype.str


def _dtype(text: Any) -> numpy.dtype[Any]:
    import numpy

    dtype = numpy.dtype(text) if type(text) is str else None
    if dtype is None or dtype.str != text or dtype.kind not in _ARRAY_KINDS:
        raise ValueError(f"{text!r:.40} is not a dtype")
    return dtype


def _scalar_from_json(node: dict[str, Any]) -> Any:
    import numpy

    dtype = _dtype(node["dtype"])
    return numpy.ndarray((), dtype, _hex(node["$scalar"], dtype.itemsize))[()]


def _empty_items(shape: Any, dtype: numpy.dtype[Any]) -> Any:
    import numpy

    return numpy.zeros(shape, dtype)
