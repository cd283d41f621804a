"""The enumeration on LocalStack: each operation of a short life in its turn is the last one.

Lives with a past, other faults and second ones are left to local files: they ask nothing else of a store, and here they
take minutes.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from spotckpt.store.s3 import S3Store
from tests.crash.world import Actor, World, recover
from tests.support.faulty_store import Faults, Kind, enumerate_faults

pytestmark = pytest.mark.localstack


@pytest.mark.fault(1)
@pytest.mark.parametrize("kind", [Kind.DIE_BEFORE, Kind.DIE_AFTER], ids=lambda kind: kind.name)
def test_at_every_operation_of_a_short_life(kind, localstack_env):
    numbers = itertools.count()

    def scenario(faults: Faults) -> None:
        root = f"{localstack_env.uri}/{next(numbers)}"
        world = World(Path(), inner=S3Store(root, environment=localstack_env.environment))
        error = Actor(world, faults).live(saves=1)
        assert (error is None) == (not faults.fired), f"{faults}: {error!r}"
        recover(world)

    fired = enumerate_faults(kind, scenario)
    assert len(fired) >= (25 if kind is Kind.DIE_BEFORE else 12), "each operation, or each that writes"
    assert any("create snapshots/" in operation for operation in fired)
