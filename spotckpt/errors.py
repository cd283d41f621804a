"""Every error that spotckpt raises, and the exit status of each.

    SpotckptError                       1
    ├── UsageError (ValueError)        64
    │   ├── AddressError               10   a URI, template or selector that cannot be read
    │   ├── SettingError               11   a setting, option or environment value out of range
    │   ├── EncodeError                12   a value that a snapshot cannot hold
    │   └── MismatchError              13   snapshot and tracked objects do not fit
    ├── StoreError                     20
    │   ├── NotFound                   21   no such object
    │   ├── AlreadyExists              22   a conditional write lost to other bytes
    │   ├── BucketMissing              23
    │   ├── Denied                     24   the action is not allowed
    │   ├── NoCredentials              25
    │   ├── Unavailable                26   refused, reset, 5xx, throttled: worth another try
    │   │   └── Replaced               29   an object that changed while it was read
    │   ├── OutcomeUnknown             27   a write may or may not have landed
    │   └── ConditionsIgnored          28   the store does not honour put-if-absent
    ├── SnapshotError                  30
    │   ├── Corrupt                    31   bytes that are not what was committed
    │   ├── FutureFormat               32   written by a newer spotckpt
    │   ├── NoSuchSnapshot             33   a selector that matches nothing
    │   ├── NothingRestorable          34   snapshots exist (or did), none can be used
    │   ├── LimitExceeded              35   a declared size over the cap
    │   └── Pruned                     36   a snapshot that a pruning removed
    ├── AgentError                     40   the agent cannot be reached or failed
    │   └── SpoolError                 41   no room, or no usable staging area
    ├── WorldSizeError                 50   WORLD_SIZE > 1
    └── DrillFailed                    60   a drill, or the demo, could not be carried out

    StopTraining (BaseException)
    ├── Interrupted                    75   the machine goes; EX_TEMPFAIL: run again
    └── Superseded                     76   another attempt owns the run

An error says what is affected, why, and what to do; `hint` is the last of these. Passwords and signatures in addresses
are not shown.
"""

from __future__ import annotations

from spotckpt.redact import redacted


class SpotckptError(Exception):
    """Base of all errors.

    Args:
        message: the thing and the cause, one line.
        hint: what the reader can do about it, one line.
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = redacted(message)
        super().__init__(self.message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(SpotckptError, ValueError):
    """Something that the user gave."""

    exit_status = 64


class AddressError(UsageError):
    """A URI, template or selector that cannot be read."""

    exit_status = 10


class SettingError(UsageError):
    """A setting, option or environment value out of range."""

    exit_status = 11


class EncodeError(UsageError):
    """A value that a snapshot cannot hold; the message starts with its path."""

    exit_status = 12


class MismatchError(UsageError):
    """The snapshot and the tracked objects do not fit each other."""

    exit_status = 13


class StoreError(SpotckptError):
    """An operation on the store failed: nothing was changed, unless it is `OutcomeUnknown`.

    Args:
        operation: the verb, as in `put_if_absent`.
        key: the object's key, or the prefix listed.
        cause: what the store said.
        hint: what the reader can do about it.
    """

    exit_status = 20

    def __init__(self, operation: str, key: str, cause: str, *, hint: str = "") -> None:
        super().__init__(f"{operation} {key}: {cause}", hint=hint)
        self.operation = operation
        self.key = redacted(key)
        self.cause = redacted(cause)


class NotFound(StoreError):
    """There is no such object."""

    exit_status = 21


class AlreadyExists(StoreError):
    """A conditional write found other bytes at the key."""

    exit_status = 22


class BucketMissing(StoreError):
    """The bucket, or the root directory's parent, is not there."""

    exit_status = 23


class Denied(StoreError):
    """The credentials do not allow the action. Denied is not missing."""

    exit_status = 24


class NoCredentials(StoreError):
    """No credentials were found, or they are not valid."""

    exit_status = 25


class Unavailable(StoreError):
    """Refused, reset, throttled, a 5xx or a deadline: the request did not take effect or was a read."""

    exit_status = 26


class Replaced(Unavailable):
    """The object is not the version that was wanted: asking again will not bring it back."""

    exit_status = 29


class OutcomeUnknown(StoreError):
    """A write was sent and no answer came: it may have landed, so nothing may be cleaned up."""

    exit_status = 27


class ConditionsIgnored(StoreError):
    """The store overwrote an object in spite of put-if-absent: two attempts could both win."""

    exit_status = 28


class SnapshotError(SpotckptError):
    """A snapshot cannot be read or chosen."""

    exit_status = 30


class Corrupt(SnapshotError):
    """The bytes at a key are not what was committed."""

    exit_status = 31


class FutureFormat(SnapshotError):
    """The object was written by a newer version of spotckpt."""

    exit_status = 32


class NoSuchSnapshot(SnapshotError):
    """A selector matches no snapshot of the run's lineage."""

    exit_status = 33


class NothingRestorable(SnapshotError):
    """The run has, or had, snapshots, and none of them can be restored."""

    exit_status = 34


class LimitExceeded(SnapshotError):
    """A declared size is over the cap; nothing was allocated."""

    exit_status = 35


class Pruned(SnapshotError):
    """The snapshot was there, and a pruning removed it."""

    exit_status = 36


class AgentError(SpotckptError):
    """The agent cannot be reached, or it failed."""

    exit_status = 40


class SpoolError(AgentError):
    """The staging area has no room or cannot be used."""

    exit_status = 41


class WorldSizeError(SpotckptError):
    """More than one rank, which this version does not do."""

    exit_status = 50


class DrillFailed(SpotckptError):
    """A drill, or the demo, could not be carried out: that says nothing about a difference."""

    exit_status = 60


class StopTraining(BaseException):
    """The training must stop here. Not an `Exception`: `except Exception: continue` must not swallow it."""

    exit_status = 70

    def __init__(self, message: str) -> None:
        self.message = redacted(message)
        super().__init__(self.message)


class Interrupted(StopTraining):
    """The machine will go, the last snapshot that could be saved is saved; run the program again elsewhere."""

    exit_status = 75


class Superseded(StopTraining):
    """A later attempt owns the run; nothing more of this one is committed."""

    exit_status = 76
