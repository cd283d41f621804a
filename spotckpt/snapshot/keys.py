"""The names of objects below a run's root, and the only reader of them.

A key that is not exactly what these functions write is not ours: `parse_key` gives None for it, so that nothing with
`..`, an absolute path, a NUL or a number in another spelling is ever followed.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal

from spotckpt.errors import AddressError

KeyKind = Literal[
    "run", "claim", "base", "heartbeat", "pack", "part", "history", "manifest", "pin", "tombstone", "probe"
]

RUN_KEY = "run.json"
ATTEMPTS_PREFIX = "attempts/"
SNAPSHOTS_PREFIX = "snapshots/"
PACKS_PREFIX = "packs/"
PINS_PREFIX = "pins/"
TOMBSTONES_PREFIX = "pruned/"
SHARED_PREFIX = "forks/"
PROBES_PREFIX = "doctor/"

_SNAPSHOT = r"a(?P<a>[0-9]{4,18})-n(?P<n>[0-9]{6,18})-s(?P<s>[0-9]{8,18})-(?P<nonce>[0-9a-f]{8})"
_ID = re.compile(_SNAPSHOT)
_ATTEMPT_KEY = re.compile(r"attempts/(?P<number>[0-9]{4,18})(?P<what>|\.base|\.heartbeat)\.json")
_MANIFEST_KEY = re.compile(rf"snapshots/(?P<id>{_SNAPSHOT})\.json")
_TOMBSTONE_KEY = re.compile(rf"pruned/(?P<id>{_SNAPSHOT})\.json")
_PACK_KEY = re.compile(rf"packs/(?P<id>{_SNAPSHOT})/rank-(?P<rank>[0-9]{{5}})\.(?P<what>safetensors|json)")
_HISTORY_KEY = re.compile(rf"packs/(?P<id>{_SNAPSHOT})/history\.safetensors")
_SHARED_KEY = re.compile(r"forks/(?P<run>[0-9a-f]{16})/(?P<key>packs/.+)")
_PROBE_KEY = re.compile(r"doctor/[0-9a-f]{16}\.bin")
_PIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, order=True)
class SnapshotId:
    """The name of a snapshot: `a0003-n000012-s00001200-1f2e3d4c`. Sorts by attempt, then sequence.

    Attributes:
        attempt: the attempt that took it, from 1.
        sequence: its number within the attempt, from 0.
        step: the boundaries counted when it was taken.
        nonce: 8 hex digits, so that two snapshots never share a name.
    """

    attempt: int
    sequence: int
    step: int
    nonce: str

    @classmethod
    def new(cls, attempt: int, sequence: int, step: int) -> SnapshotId:
        """An id with a fresh nonce."""
        return cls.parse(str(cls(attempt, sequence, step, secrets.token_hex(4))))

    @classmethod
    def parse(cls, text: str) -> SnapshotId:
        """Reads an id in its canonical spelling.

        Raises:
            AddressError: it is anything else.
        """
        match = _ID.fullmatch(text)
        found = cls(int(match["a"]), int(match["n"]), int(match["s"]), match["nonce"]) if match else None
        if found is None or str(found) != text or found.attempt < 1:
            raise AddressError(f"{text!r} is not a snapshot id", hint="as in a0003-n000012-s00001200-1f2e3d4c")
        return found

    def __str__(self) -> str:
        return f"a{self.attempt:04d}-n{self.sequence:06d}-s{self.step:08d}-{self.nonce}"


@dataclass(frozen=True)
class Key:
    """A key that was understood. `attempt` is 0, `snapshot` None and `name` empty where the kind has none."""

    kind: KeyKind
    attempt: int = 0
    snapshot: SnapshotId | None = None
    rank: int = 0
    name: str = ""


def claim_key(attempt: int) -> str:
    """The claim of that attempt."""
    return f"attempts/{attempt:04d}.json"


def base_key(attempt: int) -> str:
    """What that attempt resumed from."""
    return f"attempts/{attempt:04d}.base.json"


def heartbeat_key(attempt: int) -> str:
    """That attempt's sign of life."""
    return f"attempts/{attempt:04d}.heartbeat.json"


def pack_key(snapshot: SnapshotId, rank: int = 0) -> str:
    """The tensor bytes of one rank."""
    return f"packs/{snapshot}/rank-{rank:05d}.safetensors"


def part_key(snapshot: SnapshotId, rank: int = 0) -> str:
    """The state table of one rank."""
    return f"packs/{snapshot}/rank-{rank:05d}.json"


def history_key(snapshot: SnapshotId) -> str:
    """A segment of the metric history, sent for that snapshot."""
    return f"packs/{snapshot}/history.safetensors"


def manifest_key(snapshot: SnapshotId) -> str:
    """The object that makes the snapshot exist."""
    return f"snapshots/{snapshot}.json"


def tombstone_key(snapshot: SnapshotId) -> str:
    """The record that the snapshot was pruned."""
    return f"pruned/{snapshot}.json"


def pin_key(name: str) -> str:
    """The pin of that name.

    Raises:
        AddressError: it is not 1 to 100 letters, digits, `.`, `_`, `-`, beginning with a letter or digit.
    """
    if not _PIN_NAME.fullmatch(name):
        raise AddressError(f"pin name {name!r} cannot be a key", hint="use letters, digits, '.', '_' and '-'")
    return f"pins/{name}.json"


def shared_key(run_id: str, key: str) -> str:
    """What a fork calls an object that lies in the run of that id, from which it descends; one of others stays so."""
    return key if key.startswith(SHARED_PREFIX) else f"{SHARED_PREFIX}{run_id}/{key}"


def split_shared(key: str) -> tuple[str, str]:
    """The id of the run that the object lies in, empty for the run itself, and its key there, which is not checked."""
    match = _SHARED_KEY.fullmatch(key)
    return (match["run"], match["key"]) if match else ("", key)


def probe_key(nonce: str) -> str:
    """What `spotckpt doctor` writes, measures with and deletes; `nonce` is 16 hex digits."""
    return f"doctor/{nonce}.bin"


def parse_key(key: str) -> Key | None:
    """What a key from a listing or a record names, or None if it is outside the grammar."""
    if key == RUN_KEY:
        return Key("run")
    if _PROBE_KEY.fullmatch(key):
        return Key("probe")
    return (
        _parse_attempt(key)
        or _parse_of_snapshot(key, _MANIFEST_KEY, "manifest")
        or _parse_of_snapshot(key, _TOMBSTONE_KEY, "tombstone")
        or _parse_of_snapshot(key, _HISTORY_KEY, "history")
        or _parse_pack(key)
        or _parse_pin(key)
    )


def _parse_attempt(key: str) -> Key | None:
    match = _ATTEMPT_KEY.fullmatch(key)
    number = int(match["number"]) if match else 0
    if match is None or number < 1:
        return None
    kind: KeyKind = "base" if match["what"] == ".base" else "heartbeat" if match["what"] else "claim"
    writer = {"claim": claim_key, "base": base_key, "heartbeat": heartbeat_key}[kind]
    return Key(kind, attempt=number) if writer(number) == key else None


def _parse_of_snapshot(key: str, pattern: re.Pattern[str], kind: KeyKind) -> Key | None:
    match = pattern.fullmatch(key)
    snapshot = _snapshot(match["id"]) if match else None
    return Key(kind, snapshot.attempt, snapshot) if snapshot else None


def _parse_pack(key: str) -> Key | None:
    match = _PACK_KEY.fullmatch(key)
    snapshot = _snapshot(match["id"]) if match else None
    if match is None or snapshot is None:
        return None
    return Key("part" if match["what"] == "json" else "pack", snapshot.attempt, snapshot, rank=int(match["rank"]))


def _parse_pin(key: str) -> Key | None:
    name = key.removeprefix(PINS_PREFIX).removesuffix(".json")
    return Key("pin", name=name) if _PIN_NAME.fullmatch(name) and pin_key(name) == key else None


def _snapshot(text: str) -> SnapshotId | None:
    try:
        return SnapshotId.parse(text)
    except AddressError:
        return None
