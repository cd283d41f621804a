"""`python -m tests.bench`: measures spotckpt against raw costs and peers, and prints ratios from this one run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.bench import report
from tests.bench.bench import Bench, Found
from tests.bench.cases import CASES, LONG
from tests.bench.targets import missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when a case fails, or a figure of a quick run is short of its target by more than a third, twice."""
    given = _parser().parse_args(arguments)
    for name in [name for name in os.environ if name.startswith(("AWS_", "SPOTCKPT_"))]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every process is ended all the same
    described = report.machine()
    names = given.names or [name for name in CASES if not (given.quick and name in LONG)]
    found: dict[str, Found] = {}
    broken: list[str] = []
    bench = Bench(quick=given.quick)
    try:
        for name in names:
            measured = _measured(name, bench)
            if measured is None:
                broken.append(name)
            else:
                found[name] = measured
    finally:
        bench.close()
    report.show(found, described, quick=given.quick)
    if given.json:
        given.json.write_text(json.dumps(report.to_json(found, described, quick=given.quick), indent=1) + "\n")
    failed = missed(report.figures_of(found), quick=given.quick)
    if broken:
        print(f"not measured, see above: {', '.join(broken)}", file=sys.stderr)
    if failed:
        print(f"targets missed by more than a third: {', '.join(failed)}", file=sys.stderr)
    return 1 if broken or (given.quick and failed) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small and under a minute; status 1 if a target is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    return parser


def _measured(name: str, bench: Bench) -> Found | None:
    """One case; one that misses a target by far is measured once more, since others may have used the machine."""
    found = None
    for _ in range(2):
        started = time.perf_counter()
        try:
            found = CASES[name](bench)
        except Exception:  # noqa: BLE001  the edge: the other cases are still worth their figures
            traceback.print_exc()
            return None
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
        if not missed(found.figures, quick=bench.quick):
            break
    return found


if __name__ == "__main__":
    sys.exit(main())
