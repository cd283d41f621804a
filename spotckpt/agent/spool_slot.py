"""One slot of the staging area, as its only owner sees it; the whole is told in `spool`."""

from __future__ import annotations

import json
import mmap
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from spotckpt.agent import room
from spotckpt.agent.files import remove_durably, write_durably
from spotckpt.agent.paths import make_private_dir
from spotckpt.agent.processes import boot_id
from spotckpt.agent.slots import SEAL_NAME, STAGED_NAME, Seal
from spotckpt.errors import AgentError, SpoolError, SpotckptError
from spotckpt.snapshot.keys import SnapshotId, manifest_key
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.staged import Staged

_GRANT_NAME = "grant.json"
_KEPT_NAME = "kept.json"
_MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Grant:
    """A slot's permission to be filled once."""

    generation: int
    id: str
    data_path: str
    size_bytes: int
    boot_id: str

    @property
    def snapshot(self) -> SnapshotId:
        """`id`, parsed."""
        return SnapshotId.parse(self.id)


@dataclass(frozen=True)
class Sent:
    """A snapshot whose bytes are in the bucket. Its id is the grant's, unless it had to be sent again.

    Attributes:
        manifest: to be committed.
        began: when its upload began, on the boot's clock.
    """

    manifest: Manifest
    began: float


class SpoolSlot:
    """One slot. Not for several threads at once: the run's lock guards it.

    Attributes:
        path: its directory.
        leased: it is being uploaded.
        growing: its memory is being allocated, without the run's lock; nobody else touches it meanwhile.
        kept: the seal of the committed snapshot that it still holds, though it is free.
    """

    def __init__(self, path: Path, disk: Path) -> None:
        self.path = path
        self.leased = self.growing = False
        self.grant = self._read_grant()
        self._memory, self._disk = path / "data", disk / f"{path.name}.data"
        granted = None if self.grant is None else Path(self.grant.data_path)
        guess = self._disk if self._disk.exists() else self._memory
        self.data_path = granted if granted in (self._disk, self._memory) else guess
        self._mapped: mmap.mmap | None = None
        self._checked: tuple[tuple[int, int], Grant, Seal] | None = None
        self.kept = self._read_kept()

    def _read_grant(self) -> Grant | None:
        try:
            grant = Grant(**json.loads((self.path / _GRANT_NAME).read_bytes()))
            grant.snapshot  # noqa: B018  an id that cannot be read is no grant
        except (OSError, ValueError, TypeError, SpotckptError):
            return None
        return grant if grant.boot_id == boot_id() else None

    def _read_kept(self) -> Seal | None:
        try:
            kept = Seal.from_bytes((self.path / _KEPT_NAME).read_bytes())
        except OSError:
            return None
        return kept if kept is not None and kept.boot_id == boot_id() and self.grant is None else None

    @property
    def allocated_bytes(self) -> int:
        """Length of the data file, 0 if there is none."""
        try:
            return self.data_path.stat().st_size
        except FileNotFoundError:
            return 0

    def seal(self) -> Seal | None:
        """The seal of the present grant, on this boot, with the description that belongs to it; else None."""
        if self.grant is None:
            return None
        try:
            found = (self.path / SEAL_NAME).stat()
            version = (found.st_ino, found.st_mtime_ns)
            if self._checked is not None and self._checked[:2] == (version, self.grant):
                return self._checked[2]
            seal = self._read_seal(self.grant)
        except FileNotFoundError:
            return None
        self._checked = None if seal is None else (version, self.grant, seal)
        return seal

    def _read_seal(self, grant: Grant) -> Seal | None:
        seal = Seal.from_bytes((self.path / SEAL_NAME).read_bytes())
        if seal is None or (seal.id, seal.generation, seal.boot_id) != (grant.id, grant.generation, boot_id()):
            return None
        described = blake3((self.path / STAGED_NAME).read_bytes()).hexdigest()
        return seal if described == seal.staged_digest and seal.data_bytes <= self.allocated_bytes else None

    def staged(self) -> Staged:
        """What the trainer wrote about the snapshot. Raises as `Staged.from_bytes` does."""
        path = self.path / STAGED_NAME
        return Staged.from_bytes(path.read_bytes(), key=str(path))

    def sent(self) -> Sent | None:
        """What `keep_sent` wrote for the present grant. Raises as `Manifest.from_bytes` does."""
        try:
            head, _, data = (self.path / _MANIFEST_NAME).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        began, snapshot = head.decode().split()
        return Sent(Manifest.from_bytes(data, key=manifest_key(SnapshotId.parse(snapshot))), float(began))

    def keep_sent(self, sent: Sent) -> None:
        """Says, durably and before the first try to commit, which manifest may be in the bucket from now on."""
        head = f"{sent.began!r} {sent.manifest.snapshot}\n".encode()
        try:
            write_durably(self.path / _MANIFEST_NAME, head + sent.manifest.to_bytes())
        except OSError as error:
            raise SpoolError(
                f"{self.path / _MANIFEST_NAME} cannot be written: {error.strerror}", hint="make room there"
            ) from error

    def view(self, size_bytes: int) -> memoryview:
        """The data section, read-only."""
        self._forget_mapping()
        with self.data_path.open("rb") as stream:
            self._mapped = mmap.mmap(stream.fileno(), self.allocated_bytes, access=mmap.ACCESS_READ)
        return memoryview(self._mapped)[:size_bytes]

    def allocate(self, size_bytes: int, *, reserve_bytes: int) -> list[room.Shortage]:
        """Makes the data file that long, in memory or else on disk. Takes its time: fresh memory is touched.

        Returns:
            Why it is not where it would be best, and, if it is nowhere (`allocated_bytes` tells), why not.
        """
        try:
            for directory in (self.path.parent, self.path):
                make_private_dir(directory)
        except AgentError as error:
            return [room.Shortage(self.path, size_bytes, error.message)]
        short = []
        for path in dict.fromkeys((self.data_path, self._disk)):
            found = room.shortage(path, size_bytes, reserve_bytes=reserve_bytes)
            if found is None:
                self._move_to(path)
                break
            short.append(found)
        return short

    def _move_to(self, path: Path) -> None:
        if path != self.data_path:
            self.forget_kept()
            self._forget_mapping()
            remove_durably(self.data_path)
            self.data_path = path

    def lend(self, grant: Grant) -> None:
        """Grants the slot: the old seal is gone for good before anybody may write a byte."""
        self.forget_kept()
        remove_durably(self.path / SEAL_NAME)
        remove_durably(self.path / _MANIFEST_NAME)
        write_durably(self.path / _GRANT_NAME, json.dumps(asdict(grant)).encode())
        self.grant = grant

    def free(self) -> None:
        """Takes the grant back; the memory stays for the next one."""
        remove_durably(self.path / SEAL_NAME)
        remove_durably(self.path / _MANIFEST_NAME)
        remove_durably(self.path / _GRANT_NAME)
        self.grant, self.leased = None, False

    def keep(self) -> None:
        """Takes the grant back, its snapshot being committed, and remembers what the memory holds, if it can."""
        kept = self.seal()
        if kept is not None:
            try:
                write_durably(self.path / _KEPT_NAME, kept.to_bytes())
            except OSError:  # a full spool must not keep the slot from the next snapshot
                kept = None
        self.free()
        self.kept = kept

    def forget_kept(self) -> None:
        """From here on nobody reads what the memory holds."""
        if self.kept is not None:
            self.kept = None
            remove_durably(self.path / _KEPT_NAME)

    def _forget_mapping(self) -> None:
        # a view that somebody still holds keeps the memory; the mapping then goes with it
        self._mapped = None

    def to_json(self) -> dict[str, Any]:
        """As in `status`."""
        grant = self.grant
        state = "free" if grant is None else "leased" if self.leased else "sealed" if self.seal() else "staging"
        return {
            "state": state,
            "id": grant.id if grant else None,
            "size_bytes": self.allocated_bytes,
            "path": str(self.data_path),
        }

    def remove(self) -> None:
        """Removes the slot's files."""
        self._forget_mapping()
        remove_durably(self._disk)
        shutil.rmtree(self.path, ignore_errors=True)
