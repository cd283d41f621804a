"""Starting: waiting for a turn, claiming, listing; with stores that lie once and clocks that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spotckpt.errors import AlreadyExists, ConditionsIgnored, Corrupt, FutureFormat, NothingRestorable
from spotckpt.snapshot.attempts import (
    claim,
    ensure_run,
    holder_alive,
    is_superseded,
    take,
    wait_for_turn,
    write_base,
)
from spotckpt.snapshot.catalog import highest_attempt, read_catalog
from spotckpt.snapshot.choose import choose
from spotckpt.snapshot.fetch import pick, read_manifest
from spotckpt.snapshot.keys import RUN_KEY, base_key, claim_key, heartbeat_key, manifest_key
from spotckpt.snapshot.records import Base, Claim, Heartbeat, Holder
from spotckpt.store.base import Stat, Store
from tests.snapshot.bucket import (
    FakeClock,
    Wrapped,
    beat,
    begin,
    local_store,
    raises_naming,
    said,
    save,
    sid,
)
from tests.snapshot.test_envelope import sealed

ME = Holder(host="me", boot_id="boot", pid_namespace="pid:[1]", agent_pid=os.getpid())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return local_store(tmp_path / "run")


def unknown(holder: Holder) -> None:
    return None


def wait(store: Store, clock: FakeClock, say: Callable[[str], None] = lambda line: None, **options) -> int:
    options = {"alive": unknown, **options}
    return wait_for_turn(store, holder=ME, stale_after_s=60.0, clock=clock, say=say, **options)


def test_nobody_is_there(store: Store) -> None:
    assert wait(store, FakeClock()) == 0


def test_a_released_attempt_is_not_waited_for(store: Store) -> None:
    clock = FakeClock()
    begin(store, 1)
    beat(store, 1, released=True)
    assert wait(store, clock) == 1 and clock.now() == 1000.0


def test_a_silent_attempt_is_stale_after_the_time_out_and_the_wait_is_visible(store: Store) -> None:
    clock, (lines, say) = FakeClock(), said()
    begin(store, 1)
    beat(store, 1)
    assert wait(store, clock, say) == 1
    assert 60.0 < clock.now() - 1000.0 < 66.0
    assert "host-1" in lines[0] and "60 s" in lines[0] and 4 <= len(lines) <= 7


def test_an_attempt_that_never_beat_counts_as_silent(store: Store) -> None:
    clock = FakeClock()
    begin(store, 1, with_base=False)
    assert wait(store, clock) == 1 and 60.0 < clock.now() - 1000.0 < 66.0


def test_a_beating_attempt_is_waited_for_until_it_is_released(store: Store) -> None:
    clock = FakeClock()
    begin(store, 1)
    beats = [0]

    def on_sleep() -> None:
        beats[0] += 1
        if beats[0] % 10 == 0:
            beat(store, 1, count=beats[0], released=clock.now() > 2000)

    clock.on_sleep = on_sleep
    assert wait(store, clock) == 1 and clock.now() > 2000


def test_a_newer_claim_is_waited_for_instead(store: Store) -> None:
    clock = FakeClock()
    begin(store, 1)

    def on_sleep() -> None:
        if clock.now() > 1050 and not is_superseded(store, 1):
            begin(store, 2)

    clock.on_sleep = on_sleep
    assert wait(store, clock) == 2 and clock.now() > 1110


@pytest.mark.fault(55)
def test_a_jump_of_our_own_clock_is_not_silence(store: Store) -> None:
    clock = FakeClock()
    begin(store, 1)
    looks = [0]

    def on_sleep() -> None:
        looks[0] += 1
        if looks[0] == 2:
            clock.time += 600.0  # both machines slept; the other one beats again a little later
        beat(store, 1, count=looks[0], released=looks[0] > 5) if looks[0] > 3 else None

    clock.on_sleep = on_sleep
    assert wait(store, clock) == 1 and looks[0] == 6


def test_dead_processes_on_this_boot_are_not_waited_for(store: Store) -> None:
    clock, (lines, say) = FakeClock(), said()
    begin(store, 1)
    assert wait(store, clock, say, alive=lambda holder: False) == 1 and clock.now() == 1000.0
    assert "processes are gone" in lines[-1]


def test_an_agent_that_took_the_attempt_over_is_alive(store: Store) -> None:
    clock = FakeClock()
    begin(store, 1)
    other = Holder(host="new-agent")
    store.put(heartbeat_key(1), [Heartbeat(1, 1, 0.0, holder=other).to_bytes()])
    assert wait(store, clock, alive=lambda holder: holder.host == "new-agent") == 1
    assert clock.now() > 1060.0


def test_whoever_beats_slowly_is_given_three_beats(store: Store) -> None:
    clock = FakeClock()
    begin(store, 1)
    store.put(heartbeat_key(1), [Heartbeat(1, 1, 0.0, interval_s=50.0).to_bytes()])
    assert wait(store, clock) == 1
    assert clock.now() > 1150.0


@pytest.mark.parametrize("key", [heartbeat_key(1), claim_key(1)])
def test_damaged_records_are_waited_for_until_stale(store: Store, key: str) -> None:
    clock = FakeClock()
    begin(store, 1)
    beat(store, 1)
    store.put(key, [b"\x80\x04]\x94."])
    assert wait(store, clock) == 1 and clock.now() > 1060.0


def test_a_future_heartbeat_is_an_error(store: Store) -> None:
    begin(store, 1)
    store.put(heartbeat_key(1), [sealed(b'{"format":2}')])
    with raises_naming(FutureFormat, heartbeat_key(1)):
        wait(store, FakeClock())


def test_holder_alive_knows_only_its_own_boot_and_namespace() -> None:
    from spotckpt.snapshot.attempts import _start_time

    me = os.getpid()
    start = _start_time(me)
    assert start
    here = Holder(boot_id="b", pid_namespace="n")
    alive = replace(here, agent_pid=me, agent_start=start)
    assert holder_alive(alive, here) is True
    assert holder_alive(replace(here, trainer_pid=me, trainer_start=start), here) is True
    assert holder_alive(replace(alive, agent_start=start + 1), here) is False, "another process got the pid"
    assert holder_alive(here, here) is False
    assert holder_alive(replace(alive, boot_id="c"), here) is None
    assert holder_alive(replace(alive, pid_namespace="m"), here) is None
    assert holder_alive(Holder(agent_pid=me), Holder()) is None
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    born = _start_time(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    dead = replace(here, trainer_pid=child.pid, trainer_start=born or 0)
    assert holder_alive(dead, here) is False
    child.wait()
    assert holder_alive(dead, here) is False


# claims


@pytest.mark.fault(60)
def test_of_many_threads_one_claims_each_attempt(store: Store) -> None:
    won: list[int] = []
    barrier = threading.Barrier(8)

    def contend() -> None:
        clock = FakeClock()
        barrier.wait()
        won.append(
            take(store, holder=ME, selector="newest", stale_after_s=60, say=lambda line: None, clock=clock).attempt
        )

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(1, 9))
    assert sorted(read_catalog(store).claims) == list(range(1, 9))


CLAIMANT = """
import sys
from spotckpt.errors import AlreadyExists
from spotckpt.snapshot.attempts import claim
from spotckpt.snapshot.records import Holder
from spotckpt.store.open import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(1, 31):
    try:
        print(number, claim(store, number, Holder(), "newest").nonce, flush=True)
    except AlreadyExists:
        pass
"""


@pytest.mark.fault(60)
def test_of_several_processes_one_claims_each_attempt(store: Store) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMANT, store.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    winners = [line.split() for process in processes for line in process.communicate(timeout=240)[0].splitlines()]
    assert sorted(int(number) for number, _ in winners) == list(range(1, 31))
    claims = read_catalog(store).claims
    assert {int(number): nonce for number, nonce in winners} == {n: one.nonce for n, one in claims.items()}


@pytest.mark.fault(60)
def test_the_loser_waits_again_behind_the_winner(store: Store) -> None:
    clock, (lines, say) = FakeClock(), said()
    begin(store, 1)
    beat(store, 1, released=True)
    rivals = iter([2])

    def may_claim() -> None:
        for number in rivals:  # another is faster, and works for a while
            begin(store, number)
            clock.on_sleep = lambda: beat(store, 2, released=clock.now() > 1100)

    mine = take(
        store, holder=ME, selector="step=3", stale_after_s=60, say=say, clock=clock, alive=unknown, may_claim=may_claim
    )
    assert mine.attempt == 3 and clock.now() > 1100
    assert any("attempt 2" in line and "first" in line for line in lines)
    assert read_catalog(store).claims[3] == mine


def test_a_takeover_waits_for_nobody_but_whoever_was_first_in_doing_the_same(store: Store) -> None:
    clock, (lines, say) = FakeClock(), said()
    begin(store, 1)
    beat(store, 1)
    others = [2]

    def another_is_quicker() -> None:
        if others:
            begin(store, others.pop())
            beat(store, 2)

    taken = take(
        store,
        holder=Holder(),
        selector="newest",
        stale_after_s=60.0,
        say=say,
        clock=clock,
        alive=unknown,
        may_claim=another_is_quicker,
        takeover=True,
    )
    assert taken.attempt == 3
    assert "taking over without waiting" in lines[0] and "another process claimed attempt 2 first" in lines[1]
    assert clock.now() > 1060.0, "the one that was quicker was not waited for"


def test_a_claim_is_kept_whatever_comes_after(store: Store) -> None:
    mine = claim(store, 1, ME, "newest", arguments={"lr": 0.1})
    with raises_naming(AlreadyExists, claim_key(1)):
        claim(store, 1, ME, "newest")
    assert read_catalog(store).claims[1] == mine
    assert is_superseded(store, 1) is False
    claim(store, 2, Holder(host="a much longer name " * 20), "newest")
    with raises_naming(AlreadyExists, claim_key(2)):
        claim(store, 2, ME, "newest")
    assert is_superseded(store, 1) is True


def test_a_base_may_be_recorded_again_but_not_changed(store: Store) -> None:
    write_base(store, Base(2, str(sid(1, 1)), "step=10", ("step=10",)))
    write_base(store, Base(2, str(sid(1, 1)), "step=10", ("step=10",)))
    with raises_naming(AlreadyExists, base_key(2)):
        write_base(store, Base(2, None))


def test_records_at_another_key_or_that_contradict_themselves_are_corrupt() -> None:
    cases: list[tuple[type, object, str]] = [
        (Base, Base(2, str(sid(1, 1))), base_key(3)),
        (Base, Base(2, str(sid(2, 1))), base_key(2)),
        (Base, Base(2, "a/../b"), base_key(2)),
        (Claim, Claim(2, "n", 0.0, ME), claim_key(1)),
        (Claim, Claim(0, "n", 0.0, ME), "attempts/0000.json"),
        (Heartbeat, Heartbeat(2, 1, 0.0), heartbeat_key(1)),
        (Heartbeat, Heartbeat(2, 1, 0.0, False, str(sid(1, 1))), heartbeat_key(2)),
    ]
    for kind, record, key in cases:
        with raises_naming(Corrupt, key):
            kind.from_bytes(record.to_bytes(), key=key)  # type: ignore[attr-defined]


def test_the_run_is_made_once(store: Store) -> None:
    first = ensure_run(store, tags={"a": 1})
    assert ensure_run(store, tags={"a": 2}) == first and first.tags == {"a": 1}


def test_a_run_whose_record_is_gone_is_not_made_anew(store: Store) -> None:
    ensure_run(store)
    claim(store, 1, ME, "newest")
    store.delete([RUN_KEY])
    with raises_naming(Corrupt, f"{store.uri}/{RUN_KEY} is missing"):
        ensure_run(store)
    assert not store.exists(RUN_KEY)


def test_a_run_that_another_makes_at_the_same_time_is_not_missed(store: Store) -> None:
    class AnotherIsFaster(Wrapped):
        def list(self, prefix: str, **options):
            ensure_run(self.inner)
            claim(self.inner, 1, ME, "newest")
            return self.inner.list(prefix, **options)

    assert ensure_run(AnotherIsFaster(store)) == ensure_run(store)


class IgnoresConditions(Wrapped):
    def create(self, key: str, data: bytes, **options) -> None:
        self.inner.put(key, [data])


@pytest.mark.fault(50)
def test_a_store_that_ignores_conditions_is_refused_when_the_run_is_opened(store: Store) -> None:
    for _ in range(2):
        with raises_naming(ConditionsIgnored, store.uri):
            ensure_run(IgnoresConditions(store))


# listings that lie


class Lying(Wrapped):
    """Its n-th listing of a prefix is answered wrongly."""

    def __init__(
        self, inner: Store, prefix: str, answer: Callable[[list[Stat]], list[Stat]], *, which: int = 0
    ) -> None:
        super().__init__(inner)
        self.prefix, self.answer, self.which = prefix, answer, which

    def list(self, prefix: str, **options) -> list[Stat]:
        found = self.inner.list(prefix, **options)
        if prefix != self.prefix:
            return found
        self.which -= 1
        return self.answer(found) if self.which == -1 else found


def without_newest(found: list[Stat]) -> list[Stat]:
    newest = max(stat.key for stat in found)
    return [stat for stat in found if stat.key != newest]


@pytest.mark.fault(46)
@pytest.mark.parametrize("answer", [lambda found: [], without_newest, lambda found: found[::-1] + found])
@pytest.mark.parametrize("prefix", ["attempts/", "snapshots/"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_listing_that_is_empty_or_stale_once_changes_nothing(
    store: Store, answer: Callable[[list[Stat]], list[Stat]], prefix: str, which: int
) -> None:
    begin(store, 1)
    save(store, sid(1, 1))
    begin(store, 2, sid(1, 1))
    save(store, sid(2, 1))
    beat(store, 2, last=sid(2, 1), released=True)
    truth = choose(read_catalog(store, before=3), 3)
    assert truth.candidates == (sid(2, 1), sid(1, 1))
    assert choose(read_catalog(Lying(store, prefix, answer, which=which), before=3), 3) == truth
    assert highest_attempt(Lying(store, "attempts/", answer, which=which)) == 2


class AlwaysEmpty(Wrapped):
    def list(self, prefix: str, **options) -> list[Stat]:
        return []


@pytest.mark.fault(46)
def test_listings_that_are_always_empty_never_lead_to_a_fresh_start(store: Store) -> None:
    blind = AlwaysEmpty(store)
    begin(store, 1)
    save(store, sid(1, 1))
    beat(store, 1, last=sid(1, 1), released=True)
    assert choose(read_catalog(blind, before=2), 2).candidates == (sid(1, 1),), "the heartbeat names it"
    with pytest.raises(AlreadyExists):
        claim(blind, highest_attempt(blind) + 1, ME, "newest")
    store.delete([manifest_key(sid(1, 1))])
    choice = choose(read_catalog(blind, before=2), 2)
    assert not choice.fresh
    with raises_naming(NothingRestorable, str(sid(1, 1)), "missing"):
        pick(store, choice, lambda one: read_manifest(store, one), lambda line: None)


def test_an_empty_run_stays_fresh_after_a_second_look(store: Store) -> None:
    begin(store, 1)
    beat(store, 1, released=True)
    assert choose(read_catalog(store, before=2), 2).fresh


@pytest.mark.fault(71)
def test_strange_keys_in_a_listing_are_reported_and_never_followed(store: Store, tmp_path: Path) -> None:
    begin(store, 1)
    save(store, sid(1, 1))

    asked: list[str] = []

    class Strange(Wrapped):
        def list(self, prefix: str, **options) -> list[Stat]:
            odd = ["../../etc/passwd", "/etc/passwd", "x\0y", "0002.json.tmp", f"..{manifest_key(sid(1, 2))}"]
            return self.inner.list(prefix, **options) + [Stat(prefix + name, 1, "e") for name in odd]

        def read(self, key: str, **options) -> bytes:
            asked.append(key)
            return self.inner.read(key, **options)

    found = read_catalog(Strange(store), before=2)
    assert choose(found, 2).candidates == (sid(1, 1),)
    assert len(found.strangers) == 10 and "attempts/../../etc/passwd" in found.strangers
    assert all(".." not in key and "\0" not in key for key in asked)


# clocks


@pytest.mark.fault(52)
@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
def test_a_wrong_wall_clock_changes_no_order(store: Store, skew: float) -> None:
    ensure_run(store)
    for number in (1, 2):
        clock = FakeClock(wall=1.7e9 + skew * (number - 1))
        mine = take(store, holder=ME, selector="newest", stale_after_s=60, say=lambda line: None, clock=clock)
        choice = choose(read_catalog(store, before=mine.attempt), mine.attempt)
        base = choice.candidates[0] if choice.candidates else None
        write_base(store, Base(mine.attempt, str(base) if base else None))
        for sequence in (1, 2):
            one = sid(mine.attempt, sequence, 100 - sequence)
            save(store, one, created=clock.wall() - sequence * 1000)
            store.put(
                heartbeat_key(number), [Heartbeat(number, sequence, clock.wall() + skew, False, str(one)).to_bytes()]
            )
    expected = (sid(2, 2, 98), sid(2, 1, 99), sid(1, 2, 98), sid(1, 1, 99))
    assert choose(read_catalog(store, before=3), 3).candidates == expected
    clock = FakeClock()
    clock.on_sleep = lambda: setattr(clock, "wall_time", 1.7e9 + (skew if clock.wall_time < 1.7e9 + 100 else 0))
    assert wait(store, clock) == 2 and 60 < clock.now() - 1000 < 66, "staleness is by our own boot-time clock"
