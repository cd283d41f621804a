"""How the command line looks: tables as wide as the terminal, plain text in a pipe, JSON on request."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, NoReturn, TextIO

import click
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text

WIDTH = 100
"""Of text; a table may be wider."""
_UNLIMITED = 10_000
_GAP = 2
_ENOUGH = 16
_LEAST = 8

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
log_format_option = click.option(
    "--log-format",
    type=click.Choice(["key=value", "json"]),
    default="key=value",
    show_default=True,
    help="How a line of the agent's log is written.",
)
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True, max=86400),
    default=30.0,
    show_default=True,
    help="Seconds that one request to the store may take, retries included.",
)


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leaves it to `main` what status that is."""
        raise BrokenPipeError


def console(file: TextIO | None = None, *, most: int = WIDTH) -> Console:
    """A console on standard output, or on `file`: without colours, and as wide as allowed, where nobody watches."""
    file = file or sys.stdout
    if not file.isatty():
        return _Console(file=file, width=most, color_system=None, force_terminal=False, highlight=False)
    found = Console(file=file, highlight=False)
    return _Console(file=file, width=min(found.width, most), highlight=False)


def emit(document: object) -> None:
    """Prints JSON that any reader takes: numbers that JSON cannot say become texts."""
    click.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def emit_table(table: Table, *, most: int = _UNLIMITED) -> None:
    """Prints a table; in a pipe nothing is cut, and no line ends in blanks."""
    out = console(most=most)
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def emit_line(text: str = "", *, style: str = "") -> None:
    """Prints one line as it is; on a terminal styled."""
    console().print(escape(text), style=style or None, soft_wrap=True)


def emit_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Prints names and values in two columns, folded to the width."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    made.add_column(style="dim", no_wrap=True, max_width=48, overflow="ellipsis")
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(escape(name), escape(value))
    emit_table(made, most=WIDTH)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Iterable[str] = (),
    elastic: str = "",
    expendable: Sequence[str] = (),
) -> Table:
    """A table without a frame.

    Args:
        columns: headings.
        rows: cells, one row each.
        right: columns to be aligned right.
        elastic: the column that is shortened to what room the others leave.
        expendable: columns that are left out where there is too little room, the first ones first.
    """
    widths = [max([len(name), *(len(row[place]) for row in rows)]) for place, name in enumerate(columns)]
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold cyan")
    places = list(range(len(columns)))
    if elastic:
        place = columns.index(elastic)
        places, widths[place] = _fitting(widths, place, [columns.index(name) for name in expendable])
    for place in places:
        justify: JustifyMethod = "right" if columns[place] in right else "left"
        made.add_column(columns[place], justify=justify, no_wrap=True, overflow="ellipsis", width=widths[place])
    for row in rows:
        made.add_row(*(escape(row[place]) for place in places))
    return made


def _fitting(widths: Sequence[int], elastic: int, expendable: Sequence[int]) -> tuple[list[int], int]:
    """Which columns are shown, and how wide the elastic one is."""
    all_room, places, room = console(most=_UNLIMITED).width, list(range(len(widths))), 0
    for left_out in (None, *expendable):
        places = [place for place in places if place != left_out]
        room = all_room - sum(widths[place] + _GAP for place in places if place != elastic)
        if room >= (min(widths[elastic], _ENOUGH) if elastic in places else -_GAP):
            break
    return places, min(widths[elastic], max(room, _LEAST))


@contextmanager
def progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; told the bytes that are done."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (what, BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task("", total=total_bytes)
        yield lambda count: bar.advance(task, count)


def folded(columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str], *, fold: str) -> Table:
    """A table of short cells and one column of sentences, which are folded; the last cell of a row has its style."""
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold cyan")
    for name in columns:
        made.add_column(name, no_wrap=name != fold, overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        made.add_row(*(escape(cell) for cell in row[:-1]), Text(row[-1], style))
    return made


def ago(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `2 d`: how long ago, roughly. A time in the future is 0 s ago."""
    seconds = max(seconds, 0.0)
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def moment(wall: float) -> str:
    """`2026-03-01 12:00:00 UTC`."""
    return datetime.fromtimestamp(wall, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def number(value: float) -> str:
    """A metric's value, at most four digits; one that is not finite is marked."""
    return f"{value:.4g}" if math.isfinite(value) else f"{value}!"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
