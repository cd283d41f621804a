"""An attempt's sign of life, without the agent around it."""

from __future__ import annotations

from pathlib import Path

from spotckpt.agent.heart import Heart
from spotckpt.snapshot.catalog import read_heartbeat
from spotckpt.snapshot.keys import heartbeat_key
from spotckpt.snapshot.records import Holder
from tests.snapshot.bucket import begin, local_store


def test_a_damaged_heartbeat_does_not_keep_the_next_agent_from_beating(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    begin(store, 1)
    store.put(heartbeat_key(1), [b"{}"])
    heart = Heart(
        1,
        Holder(host="here"),
        interval_s=1.0,
        store=lambda: store,
        last_committed=lambda: None,
        reached=lambda: None,
        ended=lambda: "",
        on_superseded=lambda: None,
        adopted=True,
    )
    heart.beat()
    found = read_heartbeat(store, 1)
    assert found is not None and found.count == 1
