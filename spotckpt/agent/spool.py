"""The staging area on this machine, as its only owner sees it: the agent that holds its lock.

    <spool>/agent.lock
    <spool>/notices.json                  notices injected by hand
    <spool>/<hash of the uri>/token.json  the claim and how far it has come; no secrets
    <spool>/<hash of the uri>/slot-0/grant.json, data, staged.json, seal.json, manifest.json, kept.json

A slot is free (no grant), staging (granted), sealed (granted, with a seal of that grant) or leased (being uploaded;
known to this process only). Only the lock's holder grants and frees; the trainer only seals. What is found after an
agent was killed is therefore what the trainer and the dead agent had finished. A slot with a manifest is uploaded, and
that manifest may be on its way to the bucket: no other is ever put for this snapshot, and its packs stay as they are.

A free slot may still hold the newest committed snapshot (`kept.json`, its seal). It is granted last. When the attempt
ends it stays, so that the next one, on this machine, need not download what lies here.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from spotckpt.agent import room
from spotckpt.agent.files import remove_durably, write_durably
from spotckpt.agent.paths import make_private_dir
from spotckpt.agent.processes import boot_id
from spotckpt.agent.slots import SEAL_NAME, STAGED_NAME, Seal
from spotckpt.config import Settings
from spotckpt.errors import AgentError, SpoolError, SpotckptError
from spotckpt.snapshot.keys import SnapshotId, manifest_key
from spotckpt.snapshot.losses import Lost
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.staged import Staged

_GRANT_NAME = "grant.json"
_KEPT_NAME = "kept.json"
_MANIFEST_NAME = "manifest.json"
_TOKEN_NAME = "token.json"


@dataclass(frozen=True)
class Token:
    """An attempt that this spool holds: enough for the next agent to go on with it.

    Attributes:
        uri: the run.
        run_id: its id.
        attempt: the number claimed.
        nonce: the claim's.
        highest: the attempt before it, 0 if none.
        based: whether the base record is written, so that snapshots may be committed.
        parent: what the next snapshot continues: the newest acknowledged one, else the base.
        last_committed: the newest acknowledged one of this attempt.
        next_sequence: of the next snapshot.
        next_generation: of the next grant.
        trainer_pid: the trainer, as seen in `pid_namespace` on the boot `boot_id`.
        trainer_start: its start time in clock ticks since boot.
        boot_id: see above.
        pid_namespace: see above.
        stale_after_s: the run's setting.
        call_timeout_s: the run's setting.
        upload_every_s: the run's setting.
        upload_limit: the run's setting.
        reserve_s: the run's setting.
        saved_at: when the newest acknowledged one was captured, seconds since boot.
        lost: see `Manifest`.
        keep: the run's setting, as text; empty is none.
    """

    uri: str
    run_id: str
    attempt: int
    nonce: str
    highest: int
    trainer_pid: int
    trainer_start: int
    boot_id: str
    pid_namespace: str
    stale_after_s: float
    call_timeout_s: float
    based: bool = False
    parent: str | None = None
    last_committed: str | None = None
    next_sequence: int = 0
    next_generation: int = 1
    upload_every_s: float = 0.0
    upload_limit: float = 0.0
    reserve_s: float = Settings.reserve_s
    saved_at: float = 0.0
    lost: Lost | None = None
    keep: str = ""


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
        """Takes the grant back, its snapshot being committed, and remembers what the memory holds."""
        kept = self.seal()
        if kept is not None:
            write_durably(self.path / _KEPT_NAME, kept.to_bytes())
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


class RunSpool:
    """One attempt's token and slots. Not for several threads at once: the run's lock guards it."""

    def __init__(self, path: Path, disk: Path, token: Token) -> None:
        self.path = path
        self._disk = disk
        self.token = token
        self.slots = [SpoolSlot(found, disk) for found in sorted(path.glob("slot-*")) if found.is_dir()]

    def update(self, **changes: object) -> None:
        """Changes the token, durably; makes the directory anew if somebody cleaned it away."""
        self.token = replace(self.token, **changes)  # type: ignore[arg-type]  # names and types are the caller's
        make_private_dir(self.path)
        write_durably(self.path / _TOKEN_NAME, json.dumps(asdict(self.token)).encode())

    def sealed(self) -> list[tuple[SpoolSlot, Seal]]:
        """All sealed slots, the newest first."""
        found = [(slot, seal) for slot in self.slots if (seal := slot.seal()) is not None]
        return sorted(found, key=lambda pair: SnapshotId.parse(pair[1].id), reverse=True)

    def outdated(self) -> list[tuple[SpoolSlot, Seal]]:
        """The sealed slots that a newer one has made pointless, the newest first; never a leased one.

        A manual snapshot stays, and so does the newest of the best.
        """
        found, best = [], False
        for number, (slot, seal) in enumerate(self.sealed()):
            stays = number == 0 or seal.reason == "manual" or (seal.reason == "best" and not best)
            best = best or seal.reason == "best"
            if not stays and not slot.leased:
                found.append((slot, seal))
        return found

    def drop_older(self, than: SnapshotId) -> list[str]:
        """Frees the sealed slots up to and including that snapshot, which is committed, but leased ones; their ids."""
        dropped = []
        for slot, seal in self.sealed():
            if not slot.leased and SnapshotId.parse(seal.id) <= than:
                self.keep(slot) if SnapshotId.parse(seal.id) == than else slot.free()
                dropped.append(seal.id)
        return dropped

    def keep(self, slot: SpoolSlot) -> None:
        """Frees a slot whose snapshot is committed, and keeps its bytes as long as the memory is not needed."""
        for other in self.slots:
            other.forget_kept()
        slot.keep()

    def holding(self, snapshot: str) -> SpoolSlot | None:
        """The free slot that still holds a committed snapshot's bytes."""
        return next((slot for slot in self.slots if slot.kept is not None and slot.kept.id == snapshot), None)

    def find(self, generation: int) -> SpoolSlot | None:
        """The slot with that grant."""
        return next((slot for slot in self.slots if slot.grant and slot.grant.generation == generation), None)

    def reclaim(self) -> None:
        """Frees what was granted and not sealed.

        For when the trainer asks for a slot: it fills one at a time, so an older grant is one that it gave up, or
        whose reply it never got.
        """
        for slot in self.slots:
            if slot.grant is not None and not slot.leased and slot.seal() is None:
                slot.free()

    def fitting(self, size_bytes: int) -> list[SpoolSlot]:
        """The slots whose memory is allocated and enough, taken or not."""
        return [slot for slot in self.slots if not slot.growing and slot.allocated_bytes >= size_bytes]

    def take(self, size_bytes: int, *, step: int) -> SpoolSlot | None:
        """Grants a free slot that is large enough, the smallest of them, what is kept last; None if there is none."""
        free = (slot for slot in self.fitting(size_bytes) if slot.grant is None)
        slot = min(free, key=lambda slot: (slot.kept is not None, slot.allocated_bytes), default=None)
        return None if slot is None else self._grant(slot, step)

    def growable(self, size_bytes: int, *, most: int) -> SpoolSlot | None:
        """A slot to allocate memory for: a free one that is too small, else a new one if there may be another."""
        small = [slot for slot in self.slots if slot.grant is None and slot.allocated_bytes < size_bytes]
        if small or len(self.slots) >= most:
            return min(small, key=lambda slot: (slot.kept is not None, slot.allocated_bytes), default=None)
        taken = {slot.path.name for slot in self.slots}
        return SpoolSlot(next(self.path / f"slot-{k}" for k in range(most) if f"slot-{k}" not in taken), self._disk)

    def forget(self, slot: SpoolSlot) -> None:
        """Removes a slot for which there is no room."""
        self.slots.remove(slot)
        slot.remove()

    def free_outdated(self) -> bool:
        """Frees the oldest sealed slot that a newer sealed one has made pointless; whether there was one."""
        outdated = self.outdated()
        if outdated:
            outdated[-1][0].free()
        return bool(outdated)

    def _grant(self, slot: SpoolSlot, step: int) -> SpoolSlot:
        token = self.token
        grant = Grant(
            token.next_generation,
            str(SnapshotId.new(token.attempt, token.next_sequence, step)),
            str(slot.data_path),
            slot.allocated_bytes,
            boot_id(),
        )
        # the numbers are used up before they are given away: never twice, whoever dies
        self.update(next_generation=token.next_generation + 1, next_sequence=token.next_sequence + 1)
        slot.lend(grant)
        return slot

    def rename(self, slot: SpoolSlot, *, left: bool) -> SnapshotId | None:
        """Another id for a sealed snapshot, after all ids so far; None if a newer one is sealed and makes it pointless.

        Args:
            slot: the snapshot's.
            left: the trainer is gone, so that what it was filling will never be sealed.

        Raises:
            SpoolError: a newer one is being staged, and must not get the lower number.
        """
        assert slot.grant is not None
        newer = [other for other in self.slots if other.grant and other.grant.generation > slot.grant.generation]
        if any(other.seal() for other in newer):
            return None
        if newer and not left:
            raise SpoolError(f"{slot.grant.id} waits for what is being staged", hint="one of them is sent then")
        number = self.token.next_sequence
        self.update(next_sequence=number + 1)
        return SnapshotId.new(self.token.attempt, number, slot.grant.snapshot.step)

    def retire(self) -> bool:
        """The attempt is over: removes all but a slot that holds its newest committed snapshot, if one does.

        Returns:
            Whether there is one. A finished run keeps nothing: nobody will go on from there.
        """
        slot = next((slot for slot in self.slots if slot.kept is not None), None)
        if slot is None or slot.kept is None or slot.kept.reason == "final":
            self.remove()
            return False
        remove_durably(self.path / _TOKEN_NAME)
        self.remove_slots(but=slot)
        return True

    def remove_slots(self, *, but: SpoolSlot | None) -> None:
        """Removes all slots but one."""
        for slot in self.slots:
            if slot is not but:
                slot.remove()
        self.slots = [] if but is None else [but]

    def remove(self) -> None:
        """Removes the token, then everything else."""
        remove_durably(self.path / _TOKEN_NAME)
        self.remove_slots(but=None)
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.rmtree(self._disk, ignore_errors=True)


class Spool:
    """The directory. Whoever makes one must hold its lock."""

    def __init__(self, path: Path, disk: Path) -> None:
        self.path = path
        # other spools may share the directory on disk
        self._disk = disk / blake3(os.fsencode(path)).hexdigest()[:12]

    def load(self) -> list[RunSpool]:
        """The attempts that an earlier agent left; and what belongs to none is removed."""
        found = []
        for path in sorted(self.path.iterdir()):
            token = _read_token(path / _TOKEN_NAME)
            if token is not None and self._run_path(token.uri) == path:
                found.append(RunSpool(path, self._disk / path.name, token))
            elif path.is_dir() and not path.is_symlink() and _is_hash(path.name):
                shutil.rmtree(path, ignore_errors=True)
        kept = {run.path.name for run in found}
        for path in self._disk.iterdir() if self._disk.is_dir() else ():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)
        return found

    def create(self, token: Token) -> RunSpool:
        """Begins an attempt; of what an ended one of the same run left there only a kept snapshot stays."""
        path = self._run_path(token.uri)
        run = RunSpool(path, self._disk / path.name, token)
        run.remove_slots(but=next((slot for slot in run.slots if slot.kept is not None), None))
        run.update()
        return run

    def _run_path(self, uri: str) -> Path:
        return self.path / blake3(uri.encode()).hexdigest()[:16]


def _is_hash(name: str) -> bool:
    return len(name) == 16 and set(name) <= set("0123456789abcdef")


def _read_token(path: Path) -> Token | None:
    try:
        fields = json.loads(path.read_bytes())
        lost = fields.pop("lost", None)
        return Token(**fields, lost=None if lost is None else Lost(**lost))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
