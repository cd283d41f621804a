"""A process of the matrix: `python tests/bitexact/worker.py CASE plain|spot --uri URI --out PATH`.

Trains the case to its end and dumps what came out. `SPOT_TEST_SEED` seeds the generators before anything is built; a
restarted spot training gets another seed than its first life, so that whatever spotckpt does not restore shows.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from tests.bitexact import outcome
from tests.bitexact.cases import CASES, Case, seed_everything


def build(name: str) -> Case:
    """The case, its parts drawn from freshly seeded generators."""
    seed_everything(int(os.environ.get("SPOT_TEST_SEED", "7")))
    return CASES[name]()


def train_on_spot(name: str, uri: str, *, every: str, decorated: bool, overlap: bool) -> outcome.Outcome:
    """The spot loop, entered by the decorator or by the context manager."""
    import spotckpt
    from spotckpt.training import copying

    if overlap:
        copying.LATE_BYTES = 1  # these models are small
    if decorated:

        @spotckpt.resumable(uri, every=every, overlap=overlap)
        def train(run: spotckpt.Run) -> outcome.Outcome:
            return build(name).spot(run)

        return train()
    with spotckpt.open_run(uri, every=every, overlap=overlap) as run:
        return build(name).spot(run)


def main() -> None:
    """Reads the command line, trains, dumps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("mode", choices=("plain", "spot"))
    parser.add_argument("--uri", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", default="1 steps")
    parser.add_argument("--open-run", action="store_true")
    parser.add_argument("--overlap", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.mode == "plain":
        result = build(options.case).plain()
    else:
        result = train_on_spot(
            options.case, options.uri, every=options.every, decorated=not options.open_run, overlap=options.overlap
        )
    outcome.write(result, options.out)


if __name__ == "__main__":
    main()
