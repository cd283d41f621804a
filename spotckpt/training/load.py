"""Reading from a snapshot without training: download only what is asked for, claim nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from spotckpt.address import Address
from spotckpt.errors import UsageError
from spotckpt.snapshot.open import open_run_store
from spotckpt.training.fetching import fetch
from spotckpt.training.filling import Filling
from spotckpt.training.request import address_text
from spotckpt.training.restore import MapLocation, decode_value
from spotckpt.training.start import find, global_random_kept


def load(
    uri: str | os.PathLike[str], *, only: str | Sequence[str] | None = None, map_location: MapLocation = "cpu"
) -> dict[str, Any]:
    """The states in a snapshot by name, as `state_dict()` gave them: `load(uri, only="model")["model"]`.

    Every byte is checked against its digest. No agent is needed and nothing is claimed.

    Args:
        uri: the run, with or without a selector: `s3://bucket/run@best=valid/top1:max`.
        only: the names wanted; the tensors of others are not downloaded. None means all objects and `vars`.
        map_location: where the tensors go; None is where they were.

    Raises:
        UsageError: the snapshot does not hold that name.
        SnapshotError: there is no such snapshot, or it is not whole.
        StoreError: the store cannot be read.
    """
    names = None if only is None else {only} if isinstance(only, str) else set(only)
    address = Address.parse(address_text(uri, given_to="load") or "")
    with global_random_kept():
        store = open_run_store(address.uri)
        snapshot, _ = find(store, address)
        saved = fetch(
            store,
            snapshot,
            wanted=lambda name, tree: names is None or name in names,
            own=lambda name: name == "vars" and (names is None or name in names),
        )
        trees = {**{name: tree["state"] for name, tree in saved.objects.items()}, **saved.run}
        filling = Filling(saved.part)
        states = {
            name: decode_value(tree, filling, path=name, map_location=map_location) for name, tree in trees.items()
        }
        saved.read(filling)
    missing = sorted((names or set()) - set(states))
    if missing:
        raise UsageError(f"snapshot {snapshot} does not hold {', '.join(missing)}", hint=f"see: spotckpt show {uri}")
    return states
