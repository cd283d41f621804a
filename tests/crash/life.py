"""One life in a process of its own, to be killed: `python -m tests.crash.life URI NUM_SAVES`.

It prints each snapshot's id as soon as it is acknowledged.
"""

from __future__ import annotations

import sys
from pathlib import Path

from spotckpt.store.open import open_store
from tests.crash.world import RAW, Actor, World


def main(uri: str, num_saves: int) -> None:
    world = World(Path(), RAW, inner=open_store(uri))
    actor = Actor(world)
    actor.start()
    for _ in range(num_saves):
        actor.save()
        print(actor.committed, flush=True)
    actor.beat(released=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
