"""Pins: names that hold snapshots, against every pruning.

The pin is put first and the snapshot is looked for then, and a pruning looks for pins again after it deleted manifests:
one of the two sees the other, whichever order they come in.
"""

from __future__ import annotations

from spotckpt.deadline import SYSTEM_CLOCK, Clock
from spotckpt.errors import AlreadyExists, NotFound, Pruned, SnapshotError
from spotckpt.snapshot.fetch import read_manifest
from spotckpt.snapshot.keys import PINS_PREFIX, SnapshotId, parse_key, pin_key
from spotckpt.snapshot.lazy import in_parallel
from spotckpt.snapshot.records import MAX_RECORD_BYTES, Pin
from spotckpt.store.base import Store


def pin(store: Store, name: str, snapshot: SnapshotId, *, fork: str = "", clock: Clock = SYSTEM_CLOCK) -> None:
    """Holds a snapshot under that name, for the fork that is there; holding the same again is no error.

    Raises:
        AlreadyExists: the name holds another.
        SnapshotError: the snapshot cannot be held: it is missing, pruned or damaged.
    """
    key = pin_key(name)
    ours = True
    try:
        store.put_if_absent(key, Pin(name, str(snapshot), clock.wall(), fork=fork).to_bytes())
    except AlreadyExists as error:
        ours, held = False, _read(store, name).id
        if held != snapshot:
            raise AlreadyExists("pin", key, f"it holds {held}", hint=f"spotckpt unpin {name} first") from error
    try:
        read_manifest(store, snapshot)
    except SnapshotError as error:
        if ours or isinstance(error, Pruned):  # what somebody holds, and cannot read now, stays held
            store.delete([key])
        raise


def unpin(store: Store, name: str) -> SnapshotId:
    """Takes the pin away and returns what it held.

    Raises:
        NotFound: there is no such pin.
    """
    found = _read(store, name)
    store.delete([pin_key(name)])
    return found.id


def read_pins(store: Store) -> dict[str, Pin]:
    """All pins by name. Raises as `Pin.from_bytes` does: a pin that cannot be read might hold anything."""
    keys = [key for stat in store.list(PINS_PREFIX) if (key := parse_key(stat.key)) is not None and key.kind == "pin"]

    def one(name: str) -> Pin | None:
        try:
            return _read(store, name)
        except NotFound:
            return None  # taken away since

    found = in_parallel(one, sorted(key.name for key in keys))
    return {pin.name: pin for pin in found if pin is not None}


def _read(store: Store, name: str) -> Pin:
    key = pin_key(name)
    return Pin.from_bytes(store.read(key, limit_bytes=MAX_RECORD_BYTES), key=key)
