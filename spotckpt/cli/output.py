"""How the command line looks: tables of at most 100 columns on a terminal, plain text in a pipe, JSON on request."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 100


def console(file: TextIO | None = None) -> Console:
    """A console on standard output, or on `file`: without colours, and as wide as allowed, where nobody watches."""
    file = file or sys.stdout
    if not file.isatty():
        return Console(file=file, width=WIDTH, color_system=None, highlight=False, soft_wrap=False)
    found = Console(file=file, highlight=False)
    return Console(file=file, width=min(found.width, WIDTH), highlight=False)


def emit(document: object) -> None:
    """Prints JSON that any reader takes: numbers that JSON cannot say become texts."""
    click.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def emit_table(table: Table) -> None:
    """Prints a table; in a pipe no line ends in blanks."""
    out = console()
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def emit_line(text: str = "", *, style: str = "") -> None:
    """Prints one line as it is; on a terminal styled."""
    console().print(escape(text), style=style or None, soft_wrap=True)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = (), elastic: str = ""
) -> Table:
    """A table without a frame; `right` columns are aligned right, `elastic` is shortened first when it gets narrow."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan")
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if name == elastic else len(name),
            ratio=1 if name == elastic else None,
        )
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def size(num_bytes: int | float) -> str:
    """`512 B`, `21.3 MiB`."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 999.95 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def ago(seconds: float) -> str:
    """`now`, `12 s`, `5 min`, `3 h`, `2 d`: how long ago, roughly."""
    for limit, divisor, unit in (
        (1, 1, ""),
        (120, 1, "s"),
        (7200, 60, "min"),
        (172800, 3600, "h"),
        (math.inf, 86400, "d"),
    ):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}" if unit else "now"
    return "?"


def moment(wall: float) -> str:
    """`2026-03-01 12:00:00 UTC`."""
    return datetime.fromtimestamp(wall, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def number(value: float) -> str:
    """A metric's value, at most six digits."""
    return f"{value:.6g}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
