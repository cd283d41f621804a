"""Directories of torch.distributed.checkpoint: written by it, read without executing the pickle that its table is."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from spotckpt.errors import Corrupt, LimitExceeded, SpotckptError, UsageError
from spotckpt.moving import torch_file
from spotckpt.moving.contents import MARK, Contents, as_tensor, captured
from spotckpt.moving.document import from_document, to_document
from spotckpt.moving.flat import describe, described
from spotckpt.moving.pickles import FORGED, Known
from spotckpt.snapshot.pack import MAX_TENSOR_BYTES, MAX_TENSORS
from spotckpt.snapshot.part import MAX_PART_BYTES
from spotckpt.store.base import Progress

TABLE = ".metadata"
_TEXT, _REST = "about", "tensors"
_AGAIN = "fetch the whole directory again"


def write(contents: Contents, path: Path, progress: Progress) -> None:
    """Writes the directory, which `dcp.load` reads into `{"model": model.state_dict(), ...}`."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    document = dict(to_document(contents)) if contents.bare is None else dict(contents.objects)
    document.pop(MARK, None)
    found = captured(contents)
    tensors = [as_tensor(one).detach() for one in found.tensors]
    names = {id(one): name for name, one in _leaves(document)}
    known = [names.get(id(one), "") for one in found.tensors]
    rest = {str(row): one for row, one in enumerate(tensors) if not known[row]}
    known = [name or f"{MARK}.{_REST}.{row}" for row, name in enumerate(known)]
    # what the plain dictionary cannot say (keys that are numbers, empty dictionaries) is in this text
    document[MARK] = {_TEXT: describe(contents, found, known), _REST: rest}
    path.mkdir()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save(document, storage_writer=FileSystemWriter(path, sync_files=True), no_dist=True)
    progress(sum(one.nbytes for one in tensors))


def _leaves(document: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that get names of their own there, with these names."""

    def has_inside(value: Any) -> bool:
        if isinstance(value, list):
            return any(has_inside(one) if isinstance(one, list) else _opens(one) for one in value)
        return isinstance(value, Mapping)

    def walk(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            for key, one in value.items():
                yield from walk(f"{name}.{key}", one)
        elif has_inside(value):
            for index, one in enumerate(value):
                yield from walk(f"{name}.{index}", one)

    for key, value in document.items():
        yield from walk(key, value)


def _opens(value: Any) -> bool:
    return isinstance(value, (Mapping, torch.Tensor))


# Reading


class _Record:
    """Any class of the table, without its code: the fields alone."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


class _Tensor(_Record):
    """`TensorStorageMetadata`."""

    properties: Any
    size: tuple[int, ...]
    chunks: list[Any]


class _Bytes(_Record):
    """`BytesStorageMetadata`."""


_METADATA = "torch.distributed.checkpoint.metadata"
_CLASSES: dict[str, Any] = {
    f"{_METADATA}.TensorStorageMetadata": _Tensor,
    f"{_METADATA}.BytesStorageMetadata": _Bytes,
    "torch.Size": lambda sides=(): tuple(sides),
    **{
        name: _Record
        for name in (
            *(f"{_METADATA}.{one}" for one in ("Metadata", "MetadataIndex", "ChunkStorageMetadata", "StorageMeta")),
            *(f"{_METADATA}.{one}" for one in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
            "torch.distributed.checkpoint.filesystem._StorageInfo",
            "torch.serialization._get_layout",
            *(
                f"pathlib.{room}{one}"
                for room in ("", "_local.")
                for one in ("PosixPath", "PurePosixPath", "WindowsPath")
            ),
        )
    },
}


class _Table(Known):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """A dtype stands for itself, every class for its fields."""
        dtype = getattr(torch, global_name, None) if module_name == "torch" else None
        return dtype if isinstance(dtype, torch.dtype) else super().find_class(module_name, global_name)


def read(path: Path, *, trust_pickle: bool = False) -> Contents:
    """The checkpoint in a directory.

    Args:
        path: the directory.
        trust_pickle: execute what its values want executed; its table never is.

    Raises:
        Corrupt: a file is missing, cut short or damaged, or the table is.
        LimitExceeded: it declares more than it holds, or is compressed.
        UsageError: it is no such directory, or holds what only a pickle can make.
    """
    table = _read_table(path)
    try:
        entries: dict[str, Any] = table.state_dict_metadata
        places = {
            (one.fqn, tuple(getattr(one, "offset", None) or ())): info for one, info in table.storage_data.items()
        }
        files = _Files(path, places, trust_pickle)
        flat = {name: files.value(name, entry) for name, entry in _checked(path, entries).items()}
        mapping: Mapping[str, Any] = table.planner_data or {}
    except SpotckptError:
        raise
    except (AttributeError, TypeError, LookupError, ValueError, ArithmeticError, RuntimeError) as error:
        raise Corrupt(f"{path / TABLE}: its entries do not fit each other: {error!r:.200}", hint=_AGAIN) from error
    if f"{MARK}.{_TEXT}" in flat:
        return described(flat[f"{MARK}.{_TEXT}"], lambda name: flat[name], file=path)
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        _put(nested, mapping.get(name, (name,)), value)
    return from_document(nested, path)


def _read_table(path: Path) -> Any:
    file = path / TABLE
    if not file.is_file():
        raise UsageError(f"{path} has no {TABLE}: it is no checkpoint of torch.distributed.checkpoint", hint=_AGAIN)
    if file.stat().st_size > MAX_PART_BYTES:
        raise LimitExceeded(f"{file} has {file.stat().st_size} bytes", hint=FORGED)
    try:
        return _Table(io.BytesIO(file.read_bytes()), _CLASSES).load()
    except UsageError as error:
        raise UsageError(f"{file}: {error.message}", hint=error.hint) from error
    except Exception as error:
        raise Corrupt(f"{file} is cut short or damaged: {error!r:.200}", hint=_AGAIN) from error


def _checked(path: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries, when together they are no larger than the files: before anything is allocated."""
    if len(entries) > MAX_TENSORS:
        raise LimitExceeded(f"{path} tells of {len(entries)} entries", hint=FORGED)
    there = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    declared = 0
    for name, entry in entries.items():
        if isinstance(entry, _Tensor):
            dtype, sides = entry.properties.state[0], tuple(entry.size)
            if any(type(side) is not int or side < 0 for side in sides):
                raise Corrupt(f"{path}: {name} has the shape {sides!r:.60}", hint=_AGAIN)
            declared += min(math.prod(sides) * dtype.itemsize, MAX_TENSOR_BYTES)
    if declared > there:
        raise LimitExceeded(f"{path} has {there} bytes and declares {declared}", hint=_AGAIN)
    return entries


class _Files:
    """What the table's entries stand for."""

    def __init__(self, path: Path, places: Mapping[Any, Any], trust_pickle: bool) -> None:
        self._path = path
        self._places = places
        self._trust_pickle = trust_pickle

    def value(self, name: str, entry: Any) -> Any:
        """A value, or a tensor put together from its pieces."""
        if not isinstance(entry, _Tensor):
            return self._saved(name, self._places[name, ()])
        whole = torch.empty(tuple(entry.size), dtype=entry.properties.state[0])
        filled = sum(self._put(whole, name, tuple(one.offsets), tuple(one.sizes)) for one in entry.chunks)
        if filled != whole.numel():
            what = f"{filled} of {whole.numel()} elements of {name} are there"
            raise Corrupt(f"{self._path}: {what}", hint=_AGAIN)
        return whole

    def _put(self, whole: torch.Tensor, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> int:
        info = self._places.get((name, offsets)) or self._places[name, ()]
        piece = self._saved(name, info)
        target = whole[tuple(slice(at, at + side) for at, side in zip(offsets, sizes, strict=True))]
        if not isinstance(piece, torch.Tensor) or piece.dtype != whole.dtype:
            raise Corrupt(f"{self._path}: a piece of {name} is not what the table says", hint=_AGAIN)
        if not tuple(piece.shape) == tuple(target.shape) == sizes:
            raise Corrupt(f"{self._path}: a piece of {name} does not fit", hint=_AGAIN)
        target.copy_(piece)
        return piece.numel()

    def _saved(self, name: str, info: Any) -> Any:
        relative, offset, length = PurePosixPath(info.relative_path), info.offset, info.length
        if getattr(info, "transform_descriptors", None):
            what = f"{self._path}: {name} is compressed or encoded"
            raise LimitExceeded(what, hint="load it with torch and save it plainly")
        if len(relative.parts) != 1 or relative.parts[0] in ("..", "/") or "\0" in str(relative):
            raise Corrupt(f"{self._path}: {name} lies in {str(relative)!r:.80}, outside of the directory", hint=FORGED)
        file = self._path / relative
        if not file.is_file() or offset < 0 or length < 0 or offset + length > file.stat().st_size:
            raise Corrupt(f"{file} is missing or cut short, {name} lies in it", hint=_AGAIN)
        with file.open("rb") as opened:
            opened.seek(offset)
            data = bytearray(opened.read(length))
        return torch_file.read(data, name=f"{file} ({name})", trust_pickle=self._trust_pickle)


def _put(nested: dict[str, Any], keys: Sequence[Any], value: Any) -> None:
    """Puts a value where it was in dictionaries and lists."""
    at: Any = nested
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        new: Any = value if following is None else [] if type(following) is int else {}
        if isinstance(at, list):
            if type(key) is not int or not 0 <= key < MAX_TENSORS:
                raise Corrupt(f"the path {keys!r:.80} leads nowhere", hint=_AGAIN)
            at.extend([None] * (key + 1 - len(at)))
            at[key] = new if following is None or at[key] is None else at[key]
        else:
            at[key] = new if following is None else at.get(key, new)
        at = at[key]
