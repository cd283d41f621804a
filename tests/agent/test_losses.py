"""What an interruption cost, from the heartbeat of the attempt that ended to the manifests of the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotckpt.agent.losses import find_lost
from spotckpt.deadline import Deadline
from spotckpt.snapshot.attempts import write_heartbeat
from spotckpt.snapshot.keys import heartbeat_key
from spotckpt.snapshot.losses import Lost, Reached
from spotckpt.snapshot.records import Base, Heartbeat
from spotckpt.store.base import Store
from tests.snapshot.bucket import local_store, sid


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return local_store(tmp_path)


def beat(store: Store, attempt: int, reached: Reached | None) -> None:
    write_heartbeat(store, Heartbeat(attempt, 1, 0.0, reached=reached))


def lost(store: Store, base: Base) -> Lost | None:
    return find_lost(store, base, highest=base.attempt - 1, deadline=Deadline.after(10))


def test_steps_and_seconds_since_what_the_next_attempt_goes_on_from(store: Store) -> None:
    beat(store, 1, Reached(130, 4.5))
    assert lost(store, Base(2, str(sid(1, 10)), "newest")) == Lost(30, 4.5)
    assert lost(store, Base(2, str(sid(1, 13)), "newest")) == Lost(0, 0.0), "the last one was committed in time"
    assert lost(store, Base(2, None, "newest")) == Lost(130, 4.5), "nothing was ever committed"


def test_going_back_by_choice_is_no_loss(store: Store) -> None:
    beat(store, 1, Reached(130, 4.5))
    assert lost(store, Base(2, str(sid(1, 10)), "step=100")) is None


def test_attempts_without_a_step_are_passed_over(store: Store) -> None:
    assert lost(store, Base(1, None, "newest")) is None
    beat(store, 1, Reached(130, 4.5))
    beat(store, 2, None)
    assert lost(store, Base(4, str(sid(1, 10)), "newest")) == Lost(30, 4.5)


def test_what_cannot_be_read_is_not_known(store: Store) -> None:
    store.put(heartbeat_key(1), [b"{}"])
    assert lost(store, Base(2, None, "newest")) is None


def test_a_heartbeat_tells_it_and_older_ones_that_do_not_can_be_read() -> None:
    made = Heartbeat(3, 1, 0.0, reached=Reached(7, 0.25))
    assert Heartbeat.from_bytes(made.to_bytes(), key=heartbeat_key(3)) == made
