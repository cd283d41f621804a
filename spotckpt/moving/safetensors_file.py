"""safetensors files: tensors by name, and in the header's metadata what they do not say."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spotckpt.errors import Corrupt, LimitExceeded, UsageError
from spotckpt.moving.contents import MARK, Contents, captured, is_weights, row_major
from spotckpt.moving.document import from_document
from spotckpt.moving.flat import describe, described
from spotckpt.snapshot.pack import Stored, TensorSpec, header_length, layout, read_whole_header
from spotckpt.store.base import Progress
from spotckpt.training.tensors import DTYPES, Storable, dtype_name

_PIECE_BYTES = 16 << 20
_NO_SUCH_FILE = "it is no safetensors file, or was damaged on its way: fetch it again"


def write(contents: Contents, path: Path, progress: Progress) -> None:
    """Writes the file. A module alone lies there under the keys of its `state_dict()`, and nothing else does."""
    bare = contents.bare
    metadata = {"format": "pt"}
    if bare is not None and is_weights(bare):
        # by key, not captured: tied tensors are there under each of their names
        specs = [TensorSpec(key, dtype_name(one), tuple(one.shape)) for key, one in bare.items()]
        tensors: Sequence[Storable] = list(bare.values())
    else:
        found = captured(contents)
        specs, tensors = list(found.specs), found.tensors
        metadata[MARK] = describe(contents, found, found.names)
    place = layout(specs, metadata)
    with path.open("wb") as file:
        file.write(place.header)
        for index in place.order:
            body = row_major(tensors[index])
            for start in range(0, len(body), _PIECE_BYTES):
                progress(file.write(body[start : start + _PIECE_BYTES]))


def read(path: Path) -> Contents:
    """The checkpoint in a file; its tensors are mapped, not read.

    Raises:
        Corrupt: it is cut short or damaged.
        LimitExceeded: it declares more than it may.
    """
    tensors, metadata = _mapped(path)
    if MARK in metadata:
        return described(metadata[MARK], lambda name: tensors[name], file=path)
    return from_document(tensors, path)


def _mapped(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = header_length(file.read(8), key=str(path))
            if length > size:
                raise Corrupt(f"{path} is cut short: it has {size} bytes, its header alone {length}")
            file.seek(0)
            stored, metadata = read_whole_header(file.read(length), key=str(path))
            end = length + max((one.end for one in stored), default=0)
            if end != size:
                raise Corrupt(f"{path} has {size} bytes, and its header tells of {end}")
            # a private copy: what is written to these tensors never reaches the file
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="give a file that is there") from error
    except (Corrupt, LimitExceeded) as error:
        raise type(error)(error.message, hint=_NO_SUCH_FILE) from error
    return {one.name: _tensor(one, memory, length, path) for one in stored}, metadata


def _tensor(one: Stored, memory: mmap.mmap, start: int, path: Path) -> torch.Tensor:
    if one.dtype not in DTYPES:
        raise LimitExceeded(f"{path}: this torch has no {one.dtype}, of which {one.name} is", hint="upgrade torch")
    if one.start == one.end:
        return torch.empty(one.shape, dtype=DTYPES[one.dtype])
    view = memoryview(memory)[start + one.start : start + one.end]
    tensor = torch.frombuffer(view, dtype=torch.uint8)
    if (start + one.start) % DTYPES[one.dtype].itemsize:  # another program's file need not be aligned
        tensor = tensor.clone()
    return tensor.view(DTYPES[one.dtype]).view(one.shape)
