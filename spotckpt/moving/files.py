"""Checkpoint files: written wholly and checked, or not at all; read without trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spotckpt.errors import Corrupt, UsageError
from spotckpt.moving import dcp, safetensors_file, torch_file
from spotckpt.moving.atomic import made, require_room
from spotckpt.moving.contents import Contents, captured, fingerprint
from spotckpt.moving.document import from_document, to_document
from spotckpt.moving.formats import Format
from spotckpt.store.base import Progress


def write(contents: Contents, path: Path, format_: Format, progress: Progress = lambda count: None) -> None:
    """Writes a file, or a directory for DCP, and reads it back before it gets its name.

    Raises:
        EncodeError: the format cannot hold it.
        UsageError: likewise, or nothing can be written there, or there is no room.
        Corrupt: the disk gave back something else than was written.
    """
    size_bytes = sum(one.nbytes for one in captured(contents).tensors)
    with made(path) as temporary:
        require_room(temporary, size_bytes)
        if format_ == "safetensors":
            safetensors_file.write(contents, temporary, progress)
        elif format_ == "dcp":
            dcp.write(contents, temporary, progress)
        else:
            save(to_document(contents), temporary)
            progress(size_bytes)
        if fingerprint(_alike(read(temporary, format_), contents)) != fingerprint(contents):
            raise Corrupt(f"{path}: what was read back is not what was written", hint="check the disk, and try again")


def _alike(found: Contents, written: Contents) -> Contents:
    """What was read, under the name that it had: a state that stands for itself has none in the file."""
    if written.bare is None or len(found.objects) != 1:
        return found
    [(name, kind)], [state] = written.kinds.items(), found.objects.values()
    return Contents({name: state}, {name: kind})


def save(document: Any, path: Path) -> None:
    """`torch.save`, whose error on a full disk tells neither the path nor the cause."""
    try:
        torch.save(document, path)
    except RuntimeError as error:
        raise UsageError(f"cannot write {path}: {error}", hint="is the disk full?") from error


def read(path: Path, format_: Format, *, trust_pickle: bool = False) -> Contents:
    """The checkpoint in a file. Raises as the reader of its format does."""
    if format_ == "safetensors":
        return safetensors_file.read(path)
    if format_ == "dcp":
        return dcp.read(path, trust_pickle=trust_pickle)
    return from_document(torch_file.read(path, name=path, trust_pickle=trust_pickle, mapped=True), path)
