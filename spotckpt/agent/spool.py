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

import os
import shutil
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from spotckpt.agent.files import remove_durably, write_durably
from spotckpt.agent.paths import make_private_dir
from spotckpt.agent.processes import boot_id
from spotckpt.agent.slots import Seal
from spotckpt.agent.spool_slot import Grant, SpoolSlot
from spotckpt.agent.token import Token, read_token
from spotckpt.errors import SpoolError
from spotckpt.snapshot.keys import SnapshotId

_TOKEN_NAME = "token.json"


class RunSpool:
    """One attempt's token and slots. Not for several threads at once: the run's lock guards it."""

    def __init__(self, path: Path, disk: Path, token: Token) -> None:
        self.path = path
        self._disk = disk
        self.token = token
        self.slots = [SpoolSlot(found, disk) for found in sorted(path.glob("slot-*")) if found.is_dir()]

    def update(self, **changes: object) -> None:
        """Changes the token, durably; makes the directory anew if somebody cleaned it away.

        Raises:
            SpoolError: it cannot be written.
        """
        self.token = replace(self.token, **changes)  # type: ignore[arg-type]  # names and types are the caller's
        make_private_dir(self.path)
        try:
            write_durably(self.path / _TOKEN_NAME, self.token.to_bytes())
        except OSError as error:
            raise unusable(self.path, error) from error

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
        self._disk = _disk_of(path, disk)

    def load(self) -> list[RunSpool]:
        """The attempts that an earlier agent left; and what belongs to none is removed."""
        found = []
        for path in sorted(self.path.iterdir()):
            token = read_token(path / _TOKEN_NAME)
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
        return self.path / _name_of(uri)


def unusable(path: Path, error: OSError) -> SpoolError:
    """What the file system says of the spool, with its name."""
    where = f" ({error.filename})" if error.filename else ""
    return SpoolError(
        f"{path} cannot be used: {error.strerror}{where}",
        hint="make room there, or set SPOTCKPT_SPOOL to another directory",
    )


def held_bytes(uri: str, *, spool: Path, disk: Path) -> tuple[int, int]:
    """What the slots of that run take just now: in the spool, and on disk beside it. Needs no lock."""
    here = (spool / _name_of(uri)).glob("slot-*/data")
    beside = (_disk_of(spool, disk) / _name_of(uri)).glob("slot-*.data")
    return sum(map(_size_of, here)), sum(map(_size_of, beside))


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # it was freed meanwhile


def _name_of(uri: str) -> str:
    return blake3(uri.encode()).hexdigest()[:16]


def _disk_of(spool: Path, disk: Path) -> Path:
    # other spools may share the directory on disk
    return disk / blake3(os.fsencode(spool)).hexdigest()[:12]


def _is_hash(name: str) -> bool:
    return len(name) == 16 and set(name) <= set("0123456789abcdef")
