"""An agent in this very process, with a clock that the test turns."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from spotckpt.agent.agent import Agent
from spotckpt.agent.options import AgentOptions
from spotckpt.agent.processes import Process
from spotckpt.agent.run import Run
from spotckpt.agent.slots import Mappings, Slot
from spotckpt.agent.spool import Spool
from spotckpt.agent.token import Token
from spotckpt.deadline import SYSTEM_CLOCK
from spotckpt.snapshot.attempts import ensure_run
from spotckpt.snapshot.records import Base
from spotckpt.store.open import open_store
from tests.agent.fake_trainer import describe


class Turned:
    """The system's clock, put forward."""

    ahead_s = 0.0

    def now(self) -> float:
        return SYSTEM_CLOCK.now() + self.ahead_s

    def wall(self) -> float:
        return SYSTEM_CLOCK.wall()

    def sleep(self, seconds: float) -> None:
        SYSTEM_CLOCK.sleep(seconds)


def agent_of(tmp_path: Path, clock: Turned) -> Agent:
    """Without a socket, a watcher or a loop."""
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    options = AgentOptions(runtime_dir=tmp_path, spool_dir=spool, disk_dir=tmp_path / "disk", reserve_bytes=0)
    return Agent(
        Spool(spool, tmp_path / "disk"),
        options,
        first_look=threading.Event(),
        watch_process=lambda process: None,
        poke=lambda: None,
        clock=clock,
    )


def attempt(agent: Agent, uri: str, number: int, base: str | None) -> Run:
    """An open attempt, with its base recorded or not."""
    store = open_store(uri)
    me = Process.current()
    holder = agent.holder(me)
    token = Token(
        uri=uri,
        run_id=ensure_run(store).run_id,
        attempt=number,
        nonce="n",
        highest=number - 1,
        trainer_pid=me.pid,
        trainer_start=me.start,
        boot_id=holder.boot_id,
        pid_namespace=holder.pid_namespace,
        stale_after_s=60.0,
        call_timeout_s=60.0,
    )
    run = agent.add_run(token, me, None, holder)
    if base is not None:
        run.write_base(Base(number, base or None, "newest", (), ()))
    return run


def seal(run: Run, step: int, numbers: int) -> None:
    """Stages a snapshot as a trainer does."""
    granted = run.lend(4 * numbers, step=step, wait_s=60)
    assert granted is not None and granted.grant is not None
    grant = granted.grant
    slot = Slot(granted.path, granted.data_path, grant.generation, grant.id, grant.size_bytes)
    np.frombuffer(Mappings().open(slot), dtype="<f4", count=numbers)[:] = step
    slot.seal(describe(slot.id, step, numbers))
    run.sealed(slot.generation)
