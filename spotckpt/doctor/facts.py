"""What was measured: everything that a verdict is made of, and nothing that was decided."""

from __future__ import annotations

from dataclasses import dataclass, field

from spotckpt.notices.ec2 import State as MetadataState


@dataclass(frozen=True)
class Permission:
    """What came of asking the store for one thing.

    Attributes:
        name: `put`, `conditional put`, `get`, `list`, `multipart`, `abort`, `list uploads` or `delete`.
        allowed: None if that did not become clear.
        why: what the store said, where it did not simply do it.
        hint: what to do about that.
    """

    name: str
    allowed: bool | None
    why: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Speed:
    """Of one direction: bytes per second, by so many bytes. None and a reason if it could not be measured."""

    bytes_per_s: float | None = None
    measured_bytes: int = 0
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """What the store did.

    Attributes:
        uri: of the run.
        trouble, hint: why it cannot be used at all, and what to do; empty if it can.
        permissions: in the order in which they were tried.
        round_trip_s: of one small read.
        upload, download: of one object.
        clock_ahead_s: how far the store's clock is ahead of this machine's, by at least half a second either way.
        expiry_days: after which unfinished uploads are aborted by a rule of the bucket; None without one.
        expiry_unknown: why that could not be asked; empty if it could.
        num_rules: of the bucket's lifecycle.
    """

    uri: str
    trouble: str = ""
    hint: str = ""
    permissions: tuple[Permission, ...] = ()
    round_trip_s: float = 0.0
    upload: Speed = Speed()
    download: Speed = Speed()
    clock_ahead_s: float | None = None
    expiry_days: float | None = None
    expiry_unknown: str = ""
    num_rules: int = 0

    @property
    def is_s3(self) -> bool:
        """Whether actions, multipart uploads and lifecycle rules are its words."""
        return self.uri.startswith("s3://")

    def allows(self, name: str) -> bool | None:
        """See `Permission.allowed`; None also for what was not asked."""
        return next((one.allowed for one in self.permissions if one.name == name), None)


@dataclass(frozen=True)
class Metadata:
    """The instance metadata service.

    Attributes:
        endpoint: that was asked; empty if the environment says not to.
        state: None if nobody was asked.
        detail: what went wrong.
        hops_left: of the token's answer where it arrived here: 1, or 2 for two and more; None if nobody can tell.
        notices: in force, in words.
        instance: its id, where the service says it.
    """

    endpoint: str
    state: MetadataState | None = None
    detail: str = ""
    hops_left: int | None = None
    notices: tuple[str, ...] = ()
    instance: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine and this process; sizes in bytes.

    Attributes:
        memory: that may still be taken, below every limit, less what staging leaves free. Here and below, the room
            that slots of this very run take already counts as room.
        spool: the staging directory. spool_is_memory: whether files there are memory. spool_room: free for slots.
        disk: where slots go that have no room there. disk_room: free for slots.
        quota: of all runs together; 0 is none.
        shm: size of /dev/shm; None if there is none.
        copy_bytes_per_s: from memory to memory, warm.
        in_container: whether this process is in one.
        on_ec2: whether the firmware says so.
        can_hibernate: whether the kernel knows where to resume from.
        sigterm_grace_s: that trainings here get.
        upload_limit: bytes per second; 0 is none.
        torchrun_kill_s: how long after SIGTERM torchrun kills; None if this is not one of its workers.
        world_size: by the environment.
    """

    memory: int
    spool: str
    spool_is_memory: bool
    spool_room: int
    disk: str
    disk_room: int
    quota: int = 0
    shm: int | None = None
    copy_bytes_per_s: float = 1e9
    in_container: bool = False
    on_ec2: bool = False
    can_hibernate: bool = False
    sigterm_grace_s: float = 10.0
    upload_limit: float = 0.0
    torchrun_kill_s: float | None = None
    world_size: int = 1


@dataclass(frozen=True)
class State:
    """The bytes that one snapshot holds; None if nobody knows, and why, or where the number is from."""

    size_bytes: int | None
    source: str


@dataclass(frozen=True)
class Facts:
    """Everything."""

    state: State
    bucket: Bucket
    metadata: Metadata
    machine: Machine = field(repr=False)
