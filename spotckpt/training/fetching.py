"""A snapshot in memory: fetched, every digest checked, not yet in any object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spotckpt.errors import Corrupt
from spotckpt.snapshot.fetch import read_manifest, read_part, read_tensors
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest
from spotckpt.store.base import Progress, Store
from spotckpt.training.restore import TensorSource, decode_value, tensor_indices


@dataclass(frozen=True)
class Saved:
    """What a run goes on from.

    Attributes:
        id: the snapshot.
        manifest: its manifest.
        objects: name → encoded state of each tracked object.
        run: the run's own encoded state: position, vars, metrics, gradients.
        source: the tensors.
    """

    id: SnapshotId
    manifest: Manifest
    objects: Mapping[str, Any]
    run: Mapping[str, Any]
    source: TensorSource

    def own(self, name: str, default: Any = None) -> Any:
        """A value of the run's own state, decoded; its tensors are on the CPU."""
        if name not in self.run:
            return default
        return decode_value(self.run[name], self.source, path=name, map_location="cpu")

    def without_tensors(self) -> Saved:
        """The same, holding no memory."""
        return replace(self, source=TensorSource((), {}))


def fetch(
    store: Store,
    snapshot: SnapshotId,
    *,
    wanted: Callable[[str, Mapping[str, Any]], bool] | None = None,
    own: bool = True,
    run_id: str | None = None,
    progress: Progress | None = None,
) -> Saved:
    """Reads a snapshot and checks every byte that it keeps.

    Args:
        store: of the run.
        snapshot: which.
        wanted: which of the tracked objects are needed, by name and encoded state; None means all. The tensors of
            others are not downloaded.
        own: whether the run's own state is needed.
        run_id: the run that it must belong to; None takes what is there.
        progress: called with each number of bytes that has arrived.

    Raises:
        Corrupt, NotFound: something is not what was committed; names the key.
        FutureFormat: a newer spotckpt wrote it.
    """
    manifest = read_manifest(store, snapshot, run_id=run_id)
    part = read_part(store, manifest)
    objects, run = _trees(part.tree, snapshot)
    kept = {name: tree for name, tree in objects.items() if wanted is None or wanted(name, tree)}
    run = run if own else {}
    indices = tensor_indices([*kept.values(), *run.values()])
    tensors = read_tensors(store, part, indices, progress=progress)
    return Saved(snapshot, manifest, kept, run, TensorSource(part.tensors, tensors))


def _trees(tree: Any, snapshot: SnapshotId) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    objects = tree.get("objects") if isinstance(tree, Mapping) else None
    run = tree.get("run") if isinstance(tree, Mapping) else None
    if not isinstance(objects, Mapping) or not isinstance(run, Mapping):
        raise Corrupt(f"snapshot {snapshot} has no state tree of ours", hint="use another snapshot")
    return objects, run
