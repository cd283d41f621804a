"""The small records: run, claim, base, heartbeat, pin, tombstone."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from spotckpt.snapshot.descent import Ancestor
from spotckpt.snapshot.envelope import unwrap, wrap
from spotckpt.snapshot.fields import Fields
from spotckpt.snapshot.keys import (
    RUN_KEY,
    SnapshotId,
    base_key,
    claim_key,
    heartbeat_key,
    tombstone_key,
)
from spotckpt.snapshot.losses import Reached

MAX_RECORD_BYTES = 64 * 1024
MAX_TOMBSTONE_BYTES = 4 << 20
"""It holds a manifest, as a string."""


def new_nonce() -> str:
    """16 random hex digits, so that a record is unique to its writer."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class RunRecord:
    """`run.json`: written once, by whoever opens the run first.

    Attributes:
        run_id: 16 hex digits; every manifest repeats it.
        created: seconds since the epoch by the writer's clock, for showing.
        tags: whatever the user put there.
        forked_from: of a fork, the run that it began with a snapshot of, then that one's own ancestors.
        forked_as: the id that this snapshot has here; None if the run is no fork.
        overrides: arguments of the train function that have another value in this run, whatever its caller says.
    """

    run_id: str
    created: float
    nonce: str = field(default_factory=new_nonce)
    tags: Mapping[str, Any] = field(default_factory=dict)
    forked_from: tuple[Ancestor, ...] = ()
    forked_as: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        fork = {
            "forked_from": [one.to_json() for one in self.forked_from],
            "forked_as": self.forked_as,
            "overrides": dict(self.overrides),
        }
        plain = {"run_id": self.run_id, "created": self.created, "nonce": self.nonce, "tags": dict(self.tags)}
        return wrap({**plain, **(fork if self.forked_from else {})}, limit_bytes=MAX_RECORD_BYTES)

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str = RUN_KEY) -> RunRecord:
        """Reads the object. Raises as `unwrap` does."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_RECORD_BYTES), key)
        plain = fields.text("run_id"), fields.seconds("created"), fields.text("nonce"), fields.mapping("tags")
        if "forked_from" not in fields.body:
            return cls(*plain)
        forked_from = fields.each("forked_from", Ancestor.from_fields)
        return cls(*plain, forked_from, str(fields.snapshot("forked_as")), fields.mapping("overrides"))


@dataclass(frozen=True)
class Holder:
    """Who holds an attempt: enough to tell on the same boot whether it is gone.

    Attributes:
        host: the host's name, for showing.
        instance: the cloud's name of the machine, or empty.
        boot_id: the kernel's random id of this boot.
        pid_namespace: as in `pid:[4026531836]`; process ids mean something only within it.
        agent_pid: 0 if there is none.
        agent_start: start time in clock ticks since boot, field 22 of /proc/PID/stat (proc(5)); it tells a process
            from a later one that got the same id.
        trainer_pid: 0 if there is none.
        trainer_start: as `agent_start`.
    """

    host: str = ""
    instance: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    agent_pid: int = 0
    agent_start: int = 0
    trainer_pid: int = 0
    trainer_start: int = 0

    def to_json(self) -> dict[str, Any]:
        """As it stands in a claim."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Fields) -> Holder:
        """Reads it out of a claim."""
        names = ("host", "instance", "boot_id", "pid_namespace")
        numbers = ("agent_pid", "agent_start", "trainer_pid", "trainer_start")
        host, instance, boot_id, pid_namespace = (fields.text(name) for name in names)
        return cls(host, instance, boot_id, pid_namespace, *(fields.count(name) for name in numbers))


@dataclass(frozen=True)
class Claim:
    """`attempts/0003.json`: put if absent, never changed, never deleted. It makes its writer the owner of the run.

    Attributes:
        attempt: its number, from 1, without gaps.
        nonce: tells our own claim, landed without an answer, from another's.
        created: seconds since the epoch by the writer's clock, for showing.
        holder: who claims.
        selector: what the attempt was told to resume from, as in `step=1200`; `newest` if nothing.
        arguments: the run's arguments, JSON values; for showing.
    """

    attempt: int
    nonce: str
    created: float
    holder: Holder
    selector: str = "newest"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return wrap(
            {
                "attempt": self.attempt,
                "nonce": self.nonce,
                "created": self.created,
                "holder": self.holder.to_json(),
                "selector": self.selector,
                "arguments": dict(self.arguments),
            },
            limit_bytes=MAX_RECORD_BYTES,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Claim:
        """Reads the object at `key`. Raises as `unwrap` does, and Corrupt if it belongs at another key."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_RECORD_BYTES), key)
        attempt = fields.count("attempt", least=1)
        if claim_key(attempt) != key:
            raise fields.corrupt(f"it is the claim of attempt {attempt}")
        return cls(
            attempt,
            fields.text("nonce"),
            fields.seconds("created"),
            Holder.from_fields(Fields(fields.mapping("holder"), key)),
            fields.text("selector"),
            fields.mapping("arguments"),
        )


@dataclass(frozen=True)
class Base:
    """`attempts/0003.base.json`: what the attempt continues; put if absent before its first commit.

    It has no nonce: only the claim's winner writes it, and writing the same again after a restart is no conflict.

    Attributes:
        attempt: whose base.
        snapshot: what it continues, of an earlier attempt; None is a start from scratch.
        selector: the selector that led there.
        consumed: selectors that this lineage has followed already; told again they mean the newest.
        skipped: ids that were preferred but could not be restored.
    """

    attempt: int
    snapshot: str | None
    selector: str = "newest"
    consumed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def id(self) -> SnapshotId | None:
        """`snapshot`, parsed."""
        return None if self.snapshot is None else SnapshotId.parse(self.snapshot)

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return wrap(
            {
                "attempt": self.attempt,
                "snapshot": self.snapshot,
                "selector": self.selector,
                "consumed": list(self.consumed),
                "skipped": list(self.skipped),
            },
            limit_bytes=MAX_RECORD_BYTES,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Base:
        """Reads the object at `key`. A base that is not of an earlier attempt is Corrupt, so chains always end."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_RECORD_BYTES), key)
        attempt = fields.count("attempt", least=1)
        snapshot = fields.maybe_snapshot("snapshot")
        if base_key(attempt) != key:
            raise fields.corrupt(f"it is the base of attempt {attempt}")
        if snapshot is not None and snapshot.attempt >= attempt:
            raise fields.corrupt(f"it names {snapshot}, which is not of an earlier attempt")
        return cls(
            attempt,
            None if snapshot is None else str(snapshot),
            fields.text("selector"),
            fields.texts("consumed"),
            fields.texts("skipped"),
        )


@dataclass(frozen=True)
class Heartbeat:
    """`attempts/0003.heartbeat.json`: the only record that is overwritten, and never twice with the same bytes.

    Attributes:
        attempt: whose.
        count: grows by one with each.
        time: seconds since the epoch by the writer's clock, for showing.
        released: the attempt is over and commits nothing more.
        last_committed: its newest acknowledged snapshot.
        holder: who beats, when another agent took over from the one that claimed.
        interval_s: seconds between beats; 0 if it is not told.
        reached: how far the training has come; None if it is not told.
        ended: why the attempt is over, in a few words, for showing; empty if nobody told.
    """

    attempt: int
    count: int
    time: float
    released: bool = False
    last_committed: str | None = None
    nonce: str = field(default_factory=new_nonce)
    holder: Holder | None = None
    interval_s: float = 0.0
    reached: Reached | None = None
    ended: str = ""

    @property
    def last_id(self) -> SnapshotId | None:
        """`last_committed`, parsed."""
        return None if self.last_committed is None else SnapshotId.parse(self.last_committed)

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return wrap(
            {
                "attempt": self.attempt,
                "count": self.count,
                "time": self.time,
                "released": self.released,
                "last_committed": self.last_committed,
                "nonce": self.nonce,
                "holder": None if self.holder is None else self.holder.to_json(),
                "interval_s": self.interval_s,
                "reached": None if self.reached is None else self.reached.to_json(),
                "ended": self.ended,
            },
            limit_bytes=MAX_RECORD_BYTES,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Heartbeat:
        """Reads the object at `key`. Raises as `unwrap` does."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_RECORD_BYTES), key)
        attempt = fields.count("attempt", least=1)
        last = fields.maybe_snapshot("last_committed")
        if heartbeat_key(attempt) != key or (last is not None and last.attempt != attempt):
            raise fields.corrupt(f"it is the heartbeat of attempt {attempt}, last committed {last}")
        holder, reached = fields.body.get("holder"), fields.body.get("reached")
        return cls(
            attempt,
            fields.count("count"),
            fields.seconds("time"),
            fields.flag("released"),
            None if last is None else str(last),
            fields.text("nonce"),
            None if holder is None else Holder.from_fields(Fields(holder, key)),
            fields.seconds("interval_s") if "interval_s" in fields.body else 0.0,
            None if reached is None else Reached.from_fields(Fields(reached, key)),
            fields.text("ended") if "ended" in fields.body else "",
        )


@dataclass(frozen=True)
class Pin:
    """`pins/<name>.json`: put if absent. While it is there, its snapshot and what that refers to are not pruned.

    Attributes:
        name: as in the key.
        snapshot: what it holds.
        created: seconds since the epoch by the writer's clock, for showing.
        nonce: tells our own pin, landed without an answer, from another's.
        fork: where the run is that was forked from it, without secrets; empty if somebody pinned it by hand.
    """

    name: str
    snapshot: str
    created: float
    nonce: str = field(default_factory=new_nonce)
    fork: str = ""

    @property
    def id(self) -> SnapshotId:
        """`snapshot`, parsed."""
        return SnapshotId.parse(self.snapshot)

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return wrap(asdict(self), limit_bytes=MAX_RECORD_BYTES)

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Pin:
        """Reads the object at `key`. Raises as `unwrap` does, and Corrupt if it belongs at another key."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_RECORD_BYTES), key)
        pin = cls(
            fields.text("name"),
            str(fields.snapshot("snapshot")),
            fields.seconds("created"),
            fields.text("nonce"),
            fields.text("fork") if "fork" in fields.body else "",
        )
        if f"pins/{pin.name}.json" != key:
            raise fields.corrupt(f"it is the pin {pin.name!r}")
        return pin


@dataclass(frozen=True)
class Tombstone:
    """`pruned/<snapshot>.json`: written before the manifest is deleted, so that a missing one can be told from a lost.

    Where the manifest is there all the same, the pruning did not get so far, and the snapshot is not pruned.

    Attributes:
        snapshot: what was pruned.
        time: seconds since the epoch by the writer's clock, for showing.
        why: for showing.
        manifest: the text of its manifest: if somebody began to need it, and the pruning was killed before it could put
            it back, the next one does.
    """

    snapshot: str
    time: float
    why: str
    manifest: str

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return wrap(asdict(self), limit_bytes=MAX_TOMBSTONE_BYTES)

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Tombstone:
        """Reads the object at `key`. Raises as `unwrap` does, and Corrupt if it belongs at another key."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_TOMBSTONE_BYTES), key)
        snapshot = fields.snapshot("snapshot")
        if tombstone_key(snapshot) != key:
            raise fields.corrupt(f"it is the tombstone of {snapshot}")
        return cls(str(snapshot), fields.seconds("time"), fields.text("why"), fields.text("manifest"))
