"""The trainer's side of the spool: a slot that the agent granted, its memory and its seal.

reply = client.call("slot", timeout=..., uri=uri, size_bytes=n, step=run.step)
if not reply.get("busy"):
    slot = Slot.from_reply(reply)
    buffer = mappings.open(slot)          # writable, kept mapped for the next snapshot in the same slot
    ...                                   # copy; on failure: client.call("abort", uri=..., generation=...)
    slot.seal(staged)                     # from here the snapshot is safe from the death of this process
    client.call("sealed", uri=uri, generation=slot.generation)      # a nudge only
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from spotckpt.agent.files import remove_durably, write_durably
from spotckpt.agent.processes import boot_id
from spotckpt.agent.room import is_memory
from spotckpt.errors import SpoolError
from spotckpt.snapshot.staged import Staged

SEAL_NAME = "seal.json"
STAGED_NAME = "staged.json"

_MADV_POPULATE_WRITE = 23
_TOUCH_BYTES = 16 << 20
_CLEANED = "do not clean the spool while training; see ulimit -n and ulimit -v"


@dataclass(frozen=True)
class Seal:
    """What says that a slot holds a whole snapshot.

    Attributes:
        id: the snapshot's id.
        generation: the grant under which the slot was filled.
        boot_id: the boot; after another one the data file's pages may be lost.
        data_bytes: how much of the data file is the snapshot's.
        staged_digest: BLAKE3 of `staged.json`.
        reason: why the snapshot was taken; the one of a `best` or `manual` is not dropped for a newer one.
    """

    id: str
    generation: int
    boot_id: str
    data_bytes: int
    staged_digest: str
    reason: str

    @property
    def is_kept(self) -> bool:
        """Whether somebody asked for just this snapshot."""
        return self.reason in ("best", "manual")

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Seal | None:
        """None if it is no seal."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Slot:
    """A place for one snapshot's bytes, granted to the trainer until it seals it or gives it back.

    Attributes:
        path: the slot's directory.
        data_path: the file for the data section: allocated, `size_bytes` long or longer.
        generation: the number of this grant.
        id: the id that the snapshot will have.
        size_bytes: how many bytes may be written.
    """

    path: Path
    data_path: Path
    generation: int
    id: str
    size_bytes: int

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> Slot:
        """The slot in the agent's reply to `slot`."""
        return cls(
            Path(reply["path"]),
            Path(reply["data_path"]),
            int(reply["generation"]),
            str(reply["snapshot"]),
            int(reply["size_bytes"]),
        )

    def unseal(self) -> None:
        """Makes sure that no seal of an earlier filling remains.

        Raises:
            SpoolError: the slot is no more.
        """
        try:
            remove_durably(self.path / SEAL_NAME)
        except OSError as error:
            raise _unusable(self.path, error) from error

    def seal(self, staged: Staged) -> None:
        """Makes the snapshot exist in the spool: every byte of data must be written before.

        Wholly or not at all; survives the death of this process and of the agent, not that of the machine.

        Raises:
            SpoolError: the slot is no more, or there is no room for the description.
        """
        described = staged.to_bytes()
        seal = Seal(
            self.id, self.generation, boot_id(), staged.slot_bytes, blake3(described).hexdigest(), staged.reason
        )
        try:
            write_durably(self.path / STAGED_NAME, described)
            write_durably(self.path / SEAL_NAME, seal.to_bytes())
        except OSError as error:
            raise SpoolError(
                f"slot {self.path} cannot be sealed: {error.strerror} ({len(described)} bytes)",
                hint="make room in the spool or set SPOTCKPT_SPOOL",
            ) from error


class Mappings:
    """Keeps slots' files mapped from one snapshot to the next: first touch of fresh memory is what costs."""

    def __init__(self) -> None:
        self._mapped: dict[Path, tuple[tuple[int, int, int], mmap.mmap]] = {}
        self._lock = threading.Lock()

    def open(self, slot: Slot) -> memoryview:
        """The slot's memory, writable, `slot.size_bytes` long, without a seal.

        Raises:
            SpoolError: the file is not there any more, or is too short, or cannot be mapped.
        """
        mapped = self._map(slot.path, slot.data_path)
        if len(mapped) < slot.size_bytes:
            raise SpoolError(f"slot {slot.data_path} has {len(mapped)} bytes, not {slot.size_bytes}", hint=_CLEANED)
        slot.unseal()
        return memoryview(mapped)[: slot.size_bytes]

    def touch(self, path: Path, data_path: Path) -> None:
        """Maps a slot's file and makes its pages this process's. Of any thread; without the interpreter's lock.

        Only where files are memory: on a disk it would read and write all of it for nothing.

        Raises:
            SpoolError: as `open`.
        """
        if not is_memory(data_path.parent):
            return
        mapped = self._map(path, data_path)
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        libc = ctypes.CDLL(None)
        for offset in range(0, len(mapped), _TOUCH_BYTES):
            length = min(_TOUCH_BYTES, len(mapped) - offset)
            if libc.madvise(ctypes.c_void_p(start + offset), ctypes.c_size_t(length), _MADV_POPULATE_WRITE) != 0:
                return  # before Linux 5.14: the first snapshot does it

    def close(self) -> None:
        """Forgets all mappings; memory still in use by a view goes with the view."""
        with self._lock:
            self._mapped.clear()

    def _map(self, path: Path, data_path: Path) -> mmap.mmap:
        # by slot, not by file: when a slot's file moves, the memory of the old one must go
        with self._lock:
            identity = _identity(data_path)
            known = self._mapped.get(path)
            if known is None or known[0] != identity:
                self._mapped.pop(path, None)
                self._mapped[path] = known = identity, _mapping(data_path)
            return known[1]


def _mapping(data_path: Path) -> mmap.mmap:
    try:
        fd = os.open(data_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _unusable(data_path, error) from error
    try:
        return mmap.mmap(fd, max(os.fstat(fd).st_size, 1))
    except OSError as error:
        raise _unusable(data_path, error) from error
    finally:
        os.close(fd)


def _unusable(path: Path, error: OSError) -> SpoolError:
    return SpoolError(f"slot {path} cannot be used: {error.strerror}", hint=_CLEANED)


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_dev, found.st_ino, found.st_size)
