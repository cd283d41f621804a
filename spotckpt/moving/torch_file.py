"""Files of `torch.save`: read without executing a pickle, written so that anybody can read them so."""

from __future__ import annotations

import io
import pickle
import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from isal import isal_zlib

from spotckpt.errors import Corrupt, FutureFormat, LimitExceeded, SpotckptError, UsageError
from spotckpt.moving.pickles import FORGED, HINT, OLD_HANDLER, Look, is_harmless, refused
from spotckpt.snapshot.part import MAX_PART_BYTES
from spotckpt.snapshot.tree import MAX_DEPTH

_LEGACY_PICKLES = 5
"""Magic number, protocol, system, the value, and the keys of its storages."""
_READ_BYTES = 1 << 20


class OldHandler:
    """Takes the place of pytorchcheckpoint's class in a file: its attributes, without its code."""


OldHandler.__module__, OldHandler.__qualname__ = OLD_HANDLER.rsplit(".", 1)


def read(
    file: Path | bytearray,
    *,
    name: object,
    trust_pickle: bool = False,
    map_location: Any = "cpu",
    mapped: bool = False,
) -> Any:
    """The value that was saved.

    Args:
        file: a path, or the bytes.
        name: what errors call it.
        trust_pickle: execute what the file wants executed.
        map_location: where tensors go, as of torch.load.
        mapped: the tensors of a path are mapped, not read, where the file allows it.

    Raises:
        Corrupt: it is cut short or damaged.
        LimitExceeded: it declares more than it holds.
        UsageError: it needs classes that only a pickle can make; they are named.
    """
    with _opened(file) as opened:
        is_zip = opened.read(4) == b"PK\x03\x04"
        looks = _look_into_zip(opened, name) if is_zip else _look_into_legacy(opened, name)
    names = {one for look in looks for one in look.names if not is_harmless(one)}
    if names and not trust_pickle:
        raise refused(name, sorted(names))
    source: Any = io.BytesIO(file) if isinstance(file, bytearray) else file
    options: dict[str, Any] = {"mmap": True} if mapped and is_zip else {}
    trusted = trust_pickle and bool(names)
    return _loaded(source, name, trusted=trusted, map_location=map_location, **options)


@contextmanager
def _opened(file: Path | bytearray) -> Iterator[IO[bytes]]:
    if isinstance(file, bytearray):
        yield io.BytesIO(file)
        return
    try:
        with file.open("rb") as opened:
            yield opened
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", hint="give a file that is there") from error


def _loaded(source: Any, name: object, *, trusted: bool, **options: Any) -> Any:
    try:
        if trusted:
            return torch.load(source, pickle_module=_Trusting, weights_only=False, **options)
        with _known():
            return _finished(torch.load(source, weights_only=True, **options))
    except SpotckptError:
        raise
    except Exception as error:
        if trusted:
            raise UsageError(
                f"{name}: executing its pickle failed: {error!r:.300}", hint="import what it needs"
            ) from error
        raise Corrupt(f"{name}: torch cannot read it: {_first_line(error)}", hint=HINT) from error


class _Trusting:
    """A pickle module that executes everything, and needs no pytorchcheckpoint for its object."""

    load = staticmethod(pickle.load)

    class Unpickler(pickle.Unpickler):
        """Finds classes where they are, but for one."""

        def find_class(self, module_name: str, global_name: str) -> Any:
            """The class of that name."""
            if f"{module_name}.{global_name}" == OLD_HANDLER:
                return OldHandler
            return super().find_class(module_name, global_name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0][:300]


# The look


def _look_into_zip(opened: IO[bytes], name: object) -> list[Look]:
    try:
        with zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            _check_entries(entries, opened.seek(0, io.SEEK_END), name)
            for entry in entries:
                _check_crc(archive, entry, name)
            pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PART_BYTES:
                raise Corrupt(f"{name} is a zip archive, but none of torch.save", hint=HINT)
            folder = pickles[0].filename.removesuffix("data.pkl")
            look = Look(io.BytesIO(archive.read(pickles[0])), name)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, struct.error, ValueError) as error:
        raise Corrupt(f"{name} is cut short or damaged: {_first_line(error)}", hint=HINT) from error
    look.value()
    sizes = {entry.filename.removeprefix(f"{folder}data/"): entry.file_size for entry in entries}
    for storage in look.storages.values():
        if storage.size_bytes > sizes.get(storage.key, -1):
            raise Corrupt(f"{name}: tensor data {storage.key} is missing or short", hint=HINT)
    return [look]


def _check_entries(entries: list[zipfile.ZipInfo], size_bytes: int, name: object) -> None:
    """torch.save compresses nothing: what unpacks to more than it takes is a bomb, or not torch's."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise LimitExceeded(
                f"{name}: {entry.filename!r:.80} is compressed: {entry.compress_size} bytes that want to be "
                f"{entry.file_size}",
                hint="torch.save writes no such file; unpack it yourself if you know where it comes from",
            )
    total = sum(entry.file_size for entry in entries)
    if total > size_bytes:
        raise LimitExceeded(f"{name} has {size_bytes} bytes and declares {total}", hint=FORGED)


def _check_crc(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: object) -> None:
    """The checksums that the archive holds: torch itself does not look at them."""
    raw = archive.fp
    assert raw is not None
    raw.seek(entry.header_offset)
    header = raw.read(30)
    if header[:4] != b"PK\x03\x04":
        raise Corrupt(f"{name} is cut short or damaged at {entry.filename}", hint=HINT)
    raw.seek(entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30])))
    crc, left = 0, entry.file_size
    while left:
        block = raw.read(min(left, _READ_BYTES))
        if not block:
            raise Corrupt(f"{name} ends within {entry.filename}", hint=HINT)
        crc, left = isal_zlib.crc32(block, crc), left - len(block)
    if crc != entry.CRC:
        raise Corrupt(f"{name}: {entry.filename} does not match its checksum", hint=HINT)


def _look_into_legacy(opened: IO[bytes], name: object) -> list[Look]:
    size_bytes = opened.seek(0, io.SEEK_END)
    opened.seek(0)
    looks, values = [], []
    for _ in range(_LEGACY_PICKLES):
        looks.append(Look(opened, name))
        values.append(looks[-1].value())
        if len(values) == 1 and values[0] != torch.serialization.MAGIC_NUMBER:
            raise Corrupt(f"{name} is no file of torch.save", hint=HINT)
    _check_storages(opened, values[-1], looks[3], size_bytes, name)
    return looks


def _check_storages(opened: IO[bytes], keys: Any, look: Look, size_bytes: int, name: object) -> None:
    """What follows the pickles: for each storage the number of its elements and these."""
    place = opened.tell()
    for key in keys if isinstance(keys, list) else ():
        storage = look.storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise Corrupt(f"{name}: a storage that no tensor names", hint=HINT)
        opened.seek(place)
        stored = int.from_bytes(opened.read(8), "little", signed=True)
        if stored != storage.numel:
            raise Corrupt(f"{name}: tensor data {key} is missing or of another length", hint=HINT)
        place += 8 + storage.size_bytes
        if place > size_bytes:
            raise Corrupt(f"{name} is cut short: it has {size_bytes} bytes and declares more", hint=HINT)
    if not isinstance(keys, list) or set(look.storages) != set(keys):
        raise Corrupt(f"{name}: the list of its tensors is wrong", hint=HINT)


# What torch.load is given in the place of classes

_LOADING = threading.Lock()


@contextmanager
def _known() -> Iterator[None]:
    """Lets torch.load take numpy's values and pytorchcheckpoint's object, made by functions of ours."""
    serialization = torch.serialization
    with _LOADING:
        before = serialization.get_safe_globals()
        serialization.add_safe_globals([OldHandler, *_numpy_stand_ins()])
        try:
            yield
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(before)


class _Dtype:
    def __init__(self, text: str, *_: object) -> None:
        self.text = text
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        if self.text[:1] not in "biufcSU" or self.order not in "=<>|":
            raise Corrupt(f"a numpy value of the type {self.text!r:.40}", hint="save numbers, not objects")
        return np.dtype(self.order + self.text)


class _Array:
    value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        flat = np.frombuffer(bytes(data), dtype.dtype)
        self.value = flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype)[0]


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _numpy_stand_ins() -> list[Any]:
    """By the names that numpy 1 and numpy 2 have written."""
    made = [_named(_Dtype, "numpy.dtype"), _named(_Array, "numpy.ndarray")]
    for room in ("numpy.core.multiarray", "numpy._core.multiarray"):
        made += [_named(_scalar, f"{room}.scalar"), _named(_reconstruct, f"{room}._reconstruct")]
    return [*made, _Dtype, _Array]


def _named(what: Any, name: str) -> Any:
    if isinstance(what, type):
        made: Any = type(name, (what,), {})
    else:

        def made(*args: Any) -> Any:
            return what(*args)

    made.__module__, made.__qualname__ = name.rsplit(".", 1)
    return made


def _finished(value: Any, depth: int = 0) -> Any:
    """The value with arrays in the place of what stood in for them."""
    if depth > 2 * MAX_DEPTH:
        raise LimitExceeded("a value that is nested deeper than a snapshot holds", hint=FORGED)
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, OldHandler):
        value.__dict__.update({name: _finished(one, depth + 1) for name, one in vars(value).items()})
    elif isinstance(value, dict):
        for key, one in value.items():
            value[key] = _finished(one, depth + 1)
    elif type(value) in (list, tuple):
        return type(value)(_finished(one, depth + 1) for one in value)
    return value


def check_format(about: Mapping[str, Any], name: object, known: int) -> None:
    """Raises FutureFormat if a newer version wrote the file, Corrupt if its number is none."""
    number = about.get("format")
    if type(number) is not int or number < 1:
        raise Corrupt(f"{name} has the format {number!r:.40}", hint="it was changed by another program")
    if number > known:
        raise FutureFormat(f"{name} has format {number}, this version reads up to {known}", hint="upgrade spotckpt")
