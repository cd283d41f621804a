"""Steps that an interruption costs, in virtual time."""

from __future__ import annotations

from tests.bench.bench import Bench, Found
from tests.bench.interruptions import replay
from tests.bench.notices import GB, grid, losers, ratio, table, traces

SEEDS = range(101, 106)
"""None of them was looked at while the planner was made."""


def notices(bench: Bench) -> Found:
    """The planner against an oracle, saving at once, and the last periodic snapshot."""
    cases = list(grid(sizes=(GB, 4 * GB), rates=(250e6,), moments=1) if bench.quick else grid())
    seeds = SEEDS[:1] if bench.quick else SEEDS
    gridded = [replay(case) for case in cases]
    traced = [replay(case) for seed in seeds for case in traces(seed, 100 if bench.quick else 400)]
    figures = {
        "notices-grid": ratio(gridded),
        "notices-traces": ratio(traced),
        "notices-lost": float(len(losers([*gridded, *traced]))),
    }
    return Found(figures=figures, remarks=[*table("grid", gridded), *table("traces", traced)])
