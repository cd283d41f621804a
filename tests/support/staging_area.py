"""A spool of this very process: what a stager needs of a session, without an agent."""

from __future__ import annotations

import threading
from pathlib import Path

from spotckpt.agent.commons import Commons
from spotckpt.agent.lending import Lender
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.processes import boot_id, pid_namespace
from spotckpt.agent.slots import Slot
from spotckpt.agent.spool import RunSpool, Spool
from spotckpt.agent.token import Token
from spotckpt.deadline import Deadline
from spotckpt.snapshot.staged import Staged
from spotckpt.training.news import News


class StagingArea:
    """Lends slots and keeps what is sealed."""

    def __init__(self, spool: Path, disk: Path, *, slots: int = 3) -> None:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = Token("file:///x/run", "r" * 16, 1, "n", 0, 1, 1, boot_id(), pid_namespace(), 2.0, 10.0, based=True)
        self.spool = Spool(spool, disk)
        self.run: RunSpool = self.spool.create(token)
        self.news = News(token.uri)
        self.told: list[str] = []
        options = AgentOptions(slots=slots, reserve_bytes=0)
        commons = Commons(options, slots=list, make_room=lambda: None)
        self.lender = Lender(self.run, options, threading.Condition(), self.told.append, commons)

    def again(self) -> RunSpool:
        """What the next agent would find."""
        (found,) = self.spool.load()
        return found

    # what a session does

    def passed(self, step: int) -> None:
        """Nobody plans by it."""

    def prepare(self, size_bytes: int) -> list[tuple[Path, Path]]:
        return [(slot.path, slot.data_path) for slot in self.lender.prepare(size_bytes)]

    def slot(self, size_bytes: int, step: int, *, wait_s: float = 0.0) -> Slot | None:
        lent = self.lender.lend(size_bytes, step=step, deadline=Deadline.after(wait_s), check=lambda: None)
        if lent is None or lent.grant is None:
            return None
        grant = lent.grant
        return Slot(lent.path, Path(grant.data_path), grant.generation, grant.id, grant.size_bytes)

    def sealed(self, slot: Slot) -> None:
        found = self.run.find(slot.generation)
        assert found is not None and found.seal() is not None

    def abort(self, slot: Slot) -> None:
        found = self.run.find(slot.generation)
        if found is not None:
            found.free()

    # what a test looks at

    def newest(self) -> tuple[Staged, bytes] | None:
        """The newest sealed snapshot and its data section."""
        for slot, seal in self.run.sealed():
            return slot.staged(), bytes(slot.view(seal.data_bytes))
        return None

    def states(self) -> list[str]:
        return [str(slot.to_json()["state"]) for slot in self.run.slots]
