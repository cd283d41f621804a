"""Taking a run over: wait for the one who has it, then claim the next number.

A claim is put if absent, so of any number of claimants one wins, and the others wait again behind the winner. Nothing
here compares clocks of two machines: a heartbeat is stale when its bytes have not changed for long enough by our own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import AlreadyExists, Corrupt, LimitExceeded, NotFound
from spotckpt.snapshot.catalog import highest_attempt, read_claim, read_run, require_complete, run_missing
from spotckpt.snapshot.keys import ATTEMPTS_PREFIX, RUN_KEY, base_key, claim_key, heartbeat_key
from spotckpt.snapshot.records import MAX_RECORD_BYTES, Base, Claim, Heartbeat, Holder, RunRecord, new_nonce
from spotckpt.snapshot.save import is_superseded
from spotckpt.store.base import Store
from spotckpt.store.conditions import require_conditions

__all__ = [
    "claim",
    "ensure_run",
    "holder_alive",
    "is_superseded",
    "take",
    "wait_for_turn",
    "write_base",
    "write_heartbeat",
]

Say = Callable[[str], None]
Alive = Callable[[Holder], "bool | None"]

SAY_EVERY_S = 15.0
BEATS_MISSED = 3
SLOWEST_BEAT_S = 600.0


def ensure_run(store: Store, *, clock: Clock = SYSTEM_CLOCK, tags: Mapping[str, Any] | None = None) -> RunRecord:
    """`run.json`, written if it is not there; of several writers at once all get the winner's.

    Raises:
        ConditionsIgnored: the store does not honour put-if-absent.
        NothingRestorable: it is a fork that was not completed.
        Corrupt: it is missing where attempts are: another id would make all their snapshots another run's.
    """
    record = read_run(store)
    if record is None:
        if store.list(ATTEMPTS_PREFIX) and read_run(store) is None:  # it was there before the first claim
            raise run_missing(store.uri)
        with contextlib.suppress(AlreadyExists):  # another was first
            store.put_if_absent(RUN_KEY, _new_run(clock, tags).to_bytes())
    data = store.read(RUN_KEY, limit_bytes=MAX_RECORD_BYTES)
    require_conditions(store, RUN_KEY, data)
    record = RunRecord.from_bytes(data)
    require_complete(store, record)
    return record


def _new_run(clock: Clock, tags: Mapping[str, Any] | None) -> RunRecord:
    return RunRecord(run_id=new_nonce(), created=clock.wall(), tags=dict(tags or {}))


def wait_for_turn(
    store: Store,
    *,
    holder: Holder,
    stale_after_s: float,
    clock: Clock = SYSTEM_CLOCK,
    say: Say,
    alive: Alive | None = None,
    overtakes: int = 0,
) -> int:
    """Returns when the highest attempt is released, stale, or its processes are gone from this boot.

    It may be called off by raising in `say`, `alive` or `clock.sleep`.

    Args:
        store: rooted at the run.
        holder: who waits.
        stale_after_s: how long a heartbeat must not change; none at all counts as one that does not.
        clock: ours alone.
        say: told whom we wait for, at first and then now and again.
        alive: whether a holder lives, None if that cannot be known; by default `holder_alive` against `holder`.
        overtakes: attempts up to this one are not waited for.

    Returns:
        The highest attempt's number, 0 if there is none.
    """
    watch = _Watch(stale_after_s, clock, say, overtakes)
    knows = alive or (lambda other: holder_alive(other, holder))
    while True:
        number = highest_attempt(store)
        if number == 0 or watch.is_over(store, number, knows):
            return number
        clock.sleep(watch.interval)


class _Watch:
    """What is known of the attempt that is waited for; a newer one begins anew."""

    def __init__(self, stale_after_s: float, clock: Clock, say: Say, overtakes: int) -> None:
        self.overtakes = overtakes
        self.stale_after_s = stale_after_s
        self.interval = min(2.0, max(0.05, stale_after_s / 10))
        self.clock = clock
        self.say = say
        self.seen: tuple[int, bytes | None] | None = None
        self.holder: Holder | None = None
        self.unchanged_s = 0.0
        self.last = self.said = clock.now()

    def is_over(self, store: Store, number: int, alive: Alive) -> bool:
        data = _read_or_none(store, heartbeat_key(number))
        beat = _parsed(data, number)
        if beat is not None and beat.released:
            return True
        first = self.seen is None or self.seen[0] != number
        if first:
            self.holder = _holder_of(store, number)
        if self._gone(beat, alive):
            self.say(f"attempt {number} ended without releasing the run: its processes are gone")
            return True
        if number <= self.overtakes:
            self.say(
                f"attempt {number}{_where(self.holder)} has not released the run: taking over without waiting, as "
                "asked; it will stop, and what it has not committed by now is not part of the run"
            )
            return True
        # whoever beats more slowly than we expect is not dead for that
        limit_s = max(self.stale_after_s, BEATS_MISSED * min(beat.interval_s, SLOWEST_BEAT_S) if beat else 0.0)
        return self._is_stale(number, data, first, limit_s)

    def _gone(self, beat: Heartbeat | None, alive: Alive) -> bool:
        if self.holder is None or alive(self.holder) is not False:
            return False
        # an agent that took over the attempt after a crash names itself in the heartbeat
        return beat is None or beat.holder is None or alive(beat.holder) is False

    def _is_stale(self, number: int, data: bytes | None, first: bool, limit_s: float) -> bool:
        now = self.clock.now()
        # A suspended machine wakes up long after its last look; the others may have slept with it. So one interval
        # between two looks counts for at most half of the time-out.
        elapsed, self.last = min(now - self.last, self.stale_after_s / 2), now
        self.unchanged_s = self.unchanged_s + elapsed if (number, data) == self.seen else 0.0
        self.seen = (number, data)
        if self.unchanged_s > limit_s:
            self.say(f"attempt {number} has shown no sign of life for {self.unchanged_s:.0f} s: taking over")
            return True
        if first or now - self.said >= SAY_EVERY_S:
            self.said = now
            self.say(
                f"waiting for attempt {number}{_where(self.holder)} to release the run; it is taken over when its "
                f"heartbeat has not changed for {limit_s:.0f} s (unchanged for {self.unchanged_s:.0f} s)"
            )
        return False


def _where(holder: Holder | None) -> str:
    if holder is None:
        return ""
    return f" (on {holder.host or 'an unnamed host'}, process {holder.trainer_pid or holder.agent_pid})"


def _read_or_none(store: Store, key: str) -> bytes | None:
    try:
        return store.read(key, limit_bytes=MAX_RECORD_BYTES)
    except NotFound:
        return None
    except LimitExceeded:
        return b""


def _parsed(data: bytes | None, number: int) -> Heartbeat | None:
    try:
        return None if data is None else Heartbeat.from_bytes(data, key=heartbeat_key(number))
    except Corrupt:
        return None  # a damaged heartbeat is waited for like any other: until it is stale


def _holder_of(store: Store, number: int) -> Holder | None:
    try:
        found = read_claim(store, number)
    except (Corrupt, LimitExceeded):
        return None
    return None if found is None else found.holder


def claim(
    store: Store,
    number: int,
    holder: Holder,
    selector: str,
    *,
    created: float = 0.0,
    arguments: Mapping[str, Any] | None = None,
    deadline: Deadline | None = None,
) -> Claim:
    """Claims the attempt of that number, which must be the highest plus one.

    Raises:
        AlreadyExists: another has it; wait again, behind that one.
        OutcomeUnknown: it may be ours. An attempt without a base is harmless: claim the next one after waiting.
    """
    record = Claim(number, new_nonce(), created, holder, selector, dict(arguments or {}))
    store.put_if_absent(claim_key(number), record.to_bytes(), deadline=deadline)
    return record


def take(
    store: Store,
    *,
    holder: Holder,
    selector: str,
    stale_after_s: float,
    say: Say,
    clock: Clock = SYSTEM_CLOCK,
    alive: Alive | None = None,
    arguments: Mapping[str, Any] | None = None,
    may_claim: Callable[[], None] = lambda: None,
    takeover: bool = False,
) -> Claim:
    """Waits and claims until a claim is won.

    Args:
        store, holder, stale_after_s, say, clock, alive: as in `wait_for_turn`.
        selector, arguments: for the claim.
        may_claim: called right before each claim; raises, or blocks, while none may be made (a notice in force).
        takeover: does not wait for the attempt that is the highest now. One that is claimed meanwhile is waited for: of
            two that are impatient at once, each would else end the other. The claim fences the old attempt as always.
    """
    overtakes = highest_attempt(store) if takeover else 0
    while True:
        number = wait_for_turn(
            store,
            holder=holder,
            stale_after_s=stale_after_s,
            clock=clock,
            say=say,
            alive=alive,
            overtakes=overtakes,
        )
        may_claim()
        try:
            return claim(store, number + 1, holder, selector, created=clock.wall(), arguments=arguments)
        except AlreadyExists:
            say(f"another process claimed attempt {number + 1} first")


def write_base(store: Store, base: Base, *, deadline: Deadline | None = None) -> None:
    """Records what the attempt continues; writing the same again is no error.

    Raises:
        AlreadyExists: another base was recorded.
    """
    store.put_if_absent(base_key(base.attempt), base.to_bytes(), deadline=deadline)


def write_heartbeat(store: Store, heartbeat: Heartbeat, *, deadline: Deadline | None = None) -> None:
    """Overwrites the attempt's heartbeat."""
    store.put(heartbeat_key(heartbeat.attempt), [heartbeat.to_bytes()], deadline=deadline)


def holder_alive(holder: Holder, here: Holder) -> bool | None:
    """Whether the holder's agent or trainer still runs.

    Args:
        holder: from a claim.
        here: this process's own, for its boot id and PID namespace.

    Returns:
        None if it cannot be known: another boot or PID namespace. False only if both are gone.
    """
    same = holder.boot_id and (holder.boot_id, holder.pid_namespace) == (here.boot_id, here.pid_namespace)
    if not same:
        return None
    pids = ((holder.agent_pid, holder.agent_start), (holder.trainer_pid, holder.trainer_start))
    return any(pid > 0 and _start_time(pid) == start for pid, start in pids)


def _start_time(pid: int) -> int | None:
    """Clock ticks since boot, field 22 of /proc/PID/stat (proc(5)); None if there is no such process, or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may contain blanks and parentheses
    return None if fields[0] in "ZX" else int(fields[19])
