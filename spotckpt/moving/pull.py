"""From a snapshot to a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from spotckpt.errors import UsageError, WorldSizeError
from spotckpt.moving import files
from spotckpt.moving.contents import Contents
from spotckpt.moving.formats import Format
from spotckpt.moving.histories import columns_of
from spotckpt.moving.partial import partial
from spotckpt.snapshot.arrival import Packs
from spotckpt.snapshot.fetch import read_part
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.part import Part
from spotckpt.snapshot.tree import decode
from spotckpt.store.base import Progress, Store
from spotckpt.training.leaves import decode_leaf
from spotckpt.training.restore import tensor_indices

Begin = Callable[[str, int, int], Progress]
"""Told what begins, how many bytes it has and how many of them are there; gives what is told each further one."""


def pull(
    store: Store, manifest: Manifest, path: Path, format_: Format, *, only: Collection[str] = (), begin: Begin
) -> Contents:
    """Writes a snapshot to a file, or a directory for DCP: wholly and checked, or not at all.

    What was downloaded stays beside the file until that is written; after an interruption the next call goes on there.

    Args:
        store: rooted at the run.
        manifest: of the snapshot.
        path: the file.
        format_: of it.
        only: names of objects; the bytes of others are not downloaded. None are all, and the run's own state.
        begin: for showing.

    Raises:
        UsageError: the snapshot lacks that object, or the format cannot hold it.
        SnapshotError, StoreError: the snapshot is damaged, or cannot be read now.
    """
    if manifest.world_size != 1:
        raise WorldSizeError(f"{manifest.snapshot} has {manifest.world_size} ranks", hint="pull it with them")
    part = read_part(store, manifest)
    objects, run = _wanted(part, only, f"{store.uri}@{manifest.snapshot}")
    rows = sorted(tensor_indices([*objects.values(), *run.values()]))
    packs = Packs(store, part)
    packs.require(rows)
    with partial(path, part, rows) as found:
        found.fill(packs, begin("downloading", found.size_bytes, found.there))
        contents = _contents(objects, run, found.tensors())
        _complete(contents, store, manifest, whole=not only)
        files.write(contents, path, format_, begin("writing", found.size_bytes, 0))
    return contents


def _wanted(part: Part, only: Collection[str], where: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    objects, run = part.tree["objects"], {name: tree for name, tree in part.tree["run"].items() if name != "metrics"}
    if not only:
        return objects, run
    missing = sorted(set(only) - objects.keys())
    if missing:
        held = ", ".join(objects) or "no objects"
        raise UsageError(f"{where} does not hold {', '.join(missing)}", hint=f"it holds {held}")
    return {name: objects[name] for name in objects if name in only}, {}


def _contents(objects: Mapping[str, Any], run: Mapping[str, Any], tensors: Mapping[int, torch.Tensor]) -> Contents:
    def value(tree: Any) -> Any:
        return decode(
            tree,
            leaf=lambda node: decode_leaf(node, lambda row, device: tensors[row]),
            array=lambda row: tensors[row].numpy(),
        )

    own = {name: value(tree) for name, tree in run.items()}
    return Contents(
        objects={name: value(tree["state"]) for name, tree in objects.items()},
        kinds={name: tree["kind"] for name, tree in objects.items()},
        vars=own.pop("vars", {}),
        run=own,
    )


def _complete(contents: Contents, store: Store, manifest: Manifest, *, whole: bool) -> None:
    contents.step, contents.epoch = manifest.step, manifest.epoch
    contents.source = f"{store.uri}@{manifest.snapshot}"
    contents.arguments, contents.environment = dict(manifest.arguments), dict(manifest.environment)
    contents.evaluated = dict(manifest.evaluated)
    if whole:
        contents.history = columns_of(read_history(store, manifest))
