"""Packs: tensor bytes in one object that is a valid safetensors file.

A safetensors file is an 8-byte little-endian header length, a JSON header, and the data section without holes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from spotckpt.errors import Corrupt, EncodeError, LimitExceeded

MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library reads at most."""

MAX_TENSORS = 1_000_000
MAX_TENSOR_BYTES = 1 << 50
MAX_DIMENSIONS = 64

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
    "C128": 16,
}
"""Bytes of an element by dtype name. The names are safetensors', but for C128, which it lacks."""


def stored_as(dtype: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape in the safetensors header: C128 is F64 with a last axis of 2 (real, imaginary)."""
    return ("F64", (*shape, 2)) if dtype == "C128" else (dtype, tuple(shape))


def size_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor.

    Raises:
        LimitExceeded: an unknown dtype, a dimension or a size over the cap.
    """
    if dtype not in ITEM_BYTES:
        raise LimitExceeded(f"dtype {dtype!r} is not known", hint="a newer spotckpt may read it")
    if len(shape) > MAX_DIMENSIONS or any(not 0 <= side < 1 << 62 for side in shape):
        raise LimitExceeded(f"shape {list(shape)[:8]} is over the cap", hint="it was not written by us")
    # zero-sized tensors count with their other sides, or [2**40, 0] would pass and overflow a reader's strides
    if math.prod(side or 1 for side in shape) * ITEM_BYTES[dtype] > MAX_TENSOR_BYTES:
        raise LimitExceeded(f"a tensor of shape {list(shape)} is over the cap", hint="it was not written by us")
    return math.prod(shape) * ITEM_BYTES[dtype]


class TensorSpec(NamedTuple):
    """A tensor before its bytes have a place: what a part's `TensorEntry` says besides its chunks."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in a pack.

    Attributes:
        offsets: for each entry given, in that order, its place from the start of the data section.
        order: the entries' indices in the order of their places.
        data_bytes: length of the data section.
        header: everything before it: the pack is `header + data`.
    """

    offsets: tuple[int, ...]
    order: tuple[int, ...]
    data_bytes: int
    header: bytes


def layout(specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None) -> Layout:
    """Lays out tensors; a pure function of name, dtype and shape, so that it can be done again.

    Args:
        specs: the tensors.
        metadata: texts for the header's `__metadata__`; packs of a run have none.

    Large items come first, so every tensor is aligned to its item size; the data section starts at a multiple of 8.

    Raises:
        EncodeError: a name twice, or one that is no UTF-8 text.
        LimitExceeded: a tensor or the header over the cap.
    """
    names = [spec.name for spec in specs]
    kinds = kinds_of(specs)
    _require_unique(names)
    offsets, place = [0] * len(specs), 0
    header = [] if metadata is None else [f'"__metadata__":{json.dumps(metadata)}']
    order = sorted(range(len(specs)), key=lambda index: -kinds[index].align_bytes)  # stable
    for index in order:
        offsets[index], end = place, place + kinds[index].size_bytes
        header.append(f"{_quoted(names[index])}:{kinds[index].header}[{place},{end}]}}")
        place = end
    return Layout(tuple(offsets), tuple(order), place, _header_bytes(header))


class Typed(Protocol):
    """What has a kind."""

    @property
    def dtype(self) -> str:
        """By its name in `ITEM_BYTES`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""


class Kind(NamedTuple):
    """What tensors of one dtype and shape have in common: of the thousands of a state few differ in these.

    Attributes:
        size_bytes: of each.
        align_bytes: what its place in the pack is a multiple of.
        header: its entry in the safetensors header, up to the offsets.
    """

    size_bytes: int
    align_bytes: int
    header: str


def kinds_of(tensors: Sequence[Typed]) -> list[Kind]:
    """The kind of each tensor. Raises as `size_bytes` does."""
    typed = [(one.dtype, one.shape) for one in tensors]
    known = {one: _kind(*one) for one in set(typed)}
    return [known[one] for one in typed]


def _kind(dtype: str, shape: tuple[int, ...]) -> Kind:
    size = size_bytes(dtype, shape)
    stored, stored_shape = stored_as(dtype, shape)
    sides = ",".join(map(str, stored_shape))
    return Kind(size, ITEM_BYTES[stored], f'{{"dtype":"{stored}","shape":[{sides}],"data_offsets":')


_quoted = json.JSONEncoder(ensure_ascii=False).encode


def _require_unique(names: Sequence[str]) -> None:
    if len(set(names)) == len(names) and "__metadata__" not in names:
        return
    taken = {"__metadata__"}
    twice = next(name for name in names if name in taken or taken.add(name))  # type: ignore[func-returns-value]
    raise EncodeError(f"{twice}: two tensors of this name", hint="rename one")


def _header_bytes(entries: Sequence[str]) -> bytes:
    try:
        text = ("{" + ",".join(entries) + "}").encode()
    except UnicodeEncodeError as error:
        name = error.object[max(0, error.start - 40) : error.end + 40]
        raise EncodeError(f"a tensor's name is not text: {name!r}", hint="rename it") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise LimitExceeded(f"the header of {len(entries)} tensors is over 100 MB", hint="track fewer tensors")
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Stored:
    """A tensor as a safetensors header describes it; `start` and `end` count from the start of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_length(data: bytes, *, key: str) -> int:
    """Bytes before the data section, told by the first 8 bytes of a pack.

    Raises:
        Corrupt: fewer than 8 bytes.
        LimitExceeded: a header over the cap.
    """
    if len(data) < 8:
        raise Corrupt(f"{key} is too short to have a header", hint="use another snapshot")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise LimitExceeded(f"{key} declares a header of {length} bytes", hint="it was not written by us")
    return 8 + length


def read_header(data: bytes, *, key: str) -> tuple[Stored, ...]:
    """The tensors of a pack, by place, from its first `header_length` bytes. Raises as `read_whole_header` does."""
    return read_whole_header(data, key=key)[0]


def read_whole_header(data: bytes, *, key: str) -> tuple[tuple[Stored, ...], Mapping[str, Any]]:
    """The tensors of a pack and the header's metadata.

    Raises:
        Corrupt: not a header, sizes that do not fit the shapes, holes or overlaps.
        LimitExceeded: a header, tensor or number of tensors over the cap.
    """
    if header_length(data, key=key) != len(data):
        raise Corrupt(f"{key}: the header is cut short", hint="use another snapshot")
    try:
        body = json.loads(data[8:])
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{key}: the header is not JSON: {error}", hint="use another snapshot") from error
    if type(body) is not dict or len(body) > MAX_TENSORS:
        raise Corrupt(f"{key}: the header is not an object of tensors", hint="use another snapshot")
    metadata = body.pop("__metadata__", None)
    found = sorted((_stored(name, entry, key) for name, entry in body.items()), key=lambda one: (one.start, one.end))
    place = 0
    for one in found:
        if one.start != place:
            raise Corrupt(f"{key}: hole or overlap at {one.name}", hint="use another snapshot")
        place = one.end
    return tuple(found), metadata if type(metadata) is dict else {}


def _stored(name: str, entry: Any, key: str) -> Stored:
    def sizes(field: str) -> tuple[int, ...]:
        values = entry.get(field)
        if type(values) is not list or any(type(value) is not int or value < 0 for value in values):
            raise Corrupt(f"{key}: {field} of {name} is wrong", hint="use another snapshot")
        return tuple(values)

    if type(entry) is not dict or type(entry.get("dtype")) is not str:
        raise Corrupt(f"{key}: {name} is not a tensor", hint="use another snapshot")
    shape, place = sizes("shape"), sizes("data_offsets")
    if len(place) != 2 or place[1] - place[0] != size_bytes(entry["dtype"], shape):
        raise Corrupt(f"{key}: {name} does not fill its place", hint="use another snapshot")
    return Stored(name, entry["dtype"], shape, *place)
