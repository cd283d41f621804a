"""A snapshot to go on from: what it holds is read and checked at once, its tensors when it is known where they go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from spotckpt.errors import Corrupt, StoreError
from spotckpt.snapshot.arrival import Packs, Source
from spotckpt.snapshot.fetch import read_manifest, read_part
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.part import Part
from spotckpt.store.base import Store
from spotckpt.training.filling import Filling
from spotckpt.training.restore import decode_value, tensor_indices
from spotckpt.training.say import Arriving, say

Near = Callable[[SnapshotId, Part], "Source | None"]
"""Where the tensors of a snapshot lie on this machine, if they do."""


@dataclass(frozen=True)
class Saved:
    """What a run goes on from.

    Attributes:
        id: the snapshot.
        manifest: its manifest.
        objects: name → encoded state of each tracked object.
        run: the run's own encoded state: position, vars, gradients.
        part: the table of its tensors.
        sources: where the tensors can be read, the nearest first; the last is the bucket.
        store: of the run.
        own: the run's own state, decoded, and as `metrics` its history, once `with_own` has read them.
    """

    id: SnapshotId
    manifest: Manifest
    objects: Mapping[str, Any]
    run: Mapping[str, Any]
    part: Part
    sources: list[Source]
    store: Store
    own: Mapping[str, Any] = field(default_factory=dict)

    def read(self, filling: Filling, *, check: Callable[[], None] = lambda: None) -> None:
        """Reads what is asked for. A copy on this machine that is damaged is said aloud and not used again.

        Args:
            filling: of this part.
            check: called again and again; what it raises ends the reading.

        Raises:
            Corrupt: bytes are missing or wrong.
            StoreError: the store cannot be read.
        """
        while len(self.sources) > 1:
            try:
                return self._read(filling, check)
            except (Corrupt, StoreError) as error:
                say(
                    f"warning: the copy of {self.id} on this machine is of no use ({error.message}): reading the bucket"
                )
                del self.sources[0]
        return self._read(filling, check)

    def _read(self, filling: Filling, check: Callable[[], None]) -> None:
        filling.read(self.sources[0], progress=Arriving(f"reading {self.id}", filling.num_bytes, check))

    def with_own(self, *, check: Callable[[], None]) -> Saved:
        """The same with the run's own state, its tensors on the CPU, and its metrics. Raises as `read` does."""
        filling = Filling(self.part)
        own: dict[str, Any] = {"metrics": read_history(self.store, self.manifest)}
        own |= {name: decode_value(tree, filling, path=name, map_location="cpu") for name, tree in self.run.items()}
        self.read(filling, check=check)
        return replace(self, own=own)

    def without_own(self) -> Saved:
        """The same, holding nothing large."""
        return replace(self, own={})


def fetch(
    store: Store,
    snapshot: SnapshotId,
    *,
    wanted: Callable[[str, Mapping[str, Any]], bool] | None = None,
    own: Callable[[str], bool] = lambda name: True,
    run_id: str | None = None,
    near: Near | None = None,
) -> Saved:
    """Reads and checks all of a snapshot but its tensors; of the packs that these lie in, presence and length.

    Args:
        store: of the run.
        snapshot: which.
        wanted: which of the tracked objects are needed, by name and encoded state; None means all.
        own: which of the run's own values are needed, by name.
        run_id: the run that it must belong to; None takes what is there.
        near: asked for a copy on this machine.

    Raises:
        Corrupt, NotFound: something is not what was committed; names the key.
        FutureFormat: a newer spotckpt wrote it.
    """
    manifest = read_manifest(store, snapshot, run_id=run_id)
    part = read_part(store, manifest)
    objects, run = _trees(part.tree, snapshot)
    objects = {name: tree for name, tree in objects.items() if wanted is None or wanted(name, tree)}
    run = {name: tree for name, tree in run.items() if own(name)}
    packs = Packs(store, part)
    packs.require([row for row in tensor_indices([*objects.values(), *run.values()]) if row < len(part.tensors)])
    copy = None if near is None else near(snapshot, part)
    return Saved(snapshot, manifest, objects, run, part, [packs] if copy is None else [copy, packs], store)


def _trees(tree: Any, snapshot: SnapshotId) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    objects = tree.get("objects") if isinstance(tree, Mapping) else None
    run = tree.get("run") if isinstance(tree, Mapping) else None
    if not isinstance(objects, Mapping) or not isinstance(run, Mapping):
        raise Corrupt(f"snapshot {snapshot} has no state tree of ours", hint="use another snapshot")
    return objects, run
