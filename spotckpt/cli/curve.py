"""`spotckpt curve`: the curves of runs, in the terminal, as a picture, as a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from spotckpt.address import Address
from spotckpt.cli import output
from spotckpt.cli.files import write_file
from spotckpt.cli.runs import find_snapshot, names_snapshot, open_run
from spotckpt.curves.chart import Chart, Look, Subject, Wish, make_chart
from spotckpt.curves.read import read_subject
from spotckpt.curves.scales import Axis
from spotckpt.curves.text import draw_text

_EPILOG = """\b
Examples:
  spotckpt curve s3://bucket/run
  spotckpt curve s3://bucket/run s3://bucket/run-lr01 --metric 'valid/*' --png curves.png
  spotckpt curve s3://bucket/run --metric loss --axis time --smooth 100 --log --html curves.html
"""
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(epilog=_EPILOG)
@click.argument("addresses", metavar="URI...", nargs=-1, required=True)
@click.option("--metric", "-m", "metrics", multiple=True, help="SET/NAME or NAME, also with * and ?; :max or :min.")
@click.option("--axis", type=click.Choice(["step", "epoch", "time"]), default="step", show_default=True)
@click.option("--smooth", type=click.IntRange(min=0), default=0, help="Also show the mean over so many last steps.")
@click.option("--log", is_flag=True, help="Logarithmic values.")
@click.option("--no-left", is_flag=True, help="Without what was left by going back.")
@click.option("--png", type=_FILE, help="Draw into this picture.")
@click.option("--html", type=_FILE, help="Write this page, which needs no network.")
@click.option("--width", type=click.IntRange(20, 10000), help="Columns in the terminal, or pixels of the picture.")
@output.timeout_option
@output.json_option
def curve(
    *,
    addresses: Sequence[str],
    metrics: Sequence[str],
    axis: Axis,
    smooth: int,
    log: bool,
    no_left: bool,
    png: Path | None,
    html: Path | None,
    width: int | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Draw metrics, interruptions and points to resume from.

    URI may end in a selector: then it is the way to that snapshot. Without --metric all metrics are drawn, the first
    eight in one picture. The best value is marked where the metric's name tells which way is better, or with :max or
    :min. Downloads metrics only. --json prints what is known of the runs, without the curves.
    """
    wishes = [Wish.parse(text) for text in metrics]
    subjects = [_read(address, left=not no_left, timeout_s=timeout_s) for address in dict.fromkeys(addresses)]
    tell = _say if as_json else output.emit_line
    if png is not None:
        chart = make_chart(subjects, Look(axis, log, smooth, width or 1200), wishes)
        tell(_draw_png(png, chart, width or 1200))
    if html is not None:
        chart = make_chart(subjects, Look(axis, log, smooth, _fineness(subjects)), wishes, most=sys.maxsize)
        tell(_draw_html(html, chart))
    if as_json:
        output.emit([_document(subject) for subject in subjects])
    if not (as_json or png or html):
        out = output.console(most=width or sys.maxsize)
        columns = width or min(out.width, sys.maxsize if out.is_terminal else output.WIDTH)
        chart = make_chart(subjects, Look(axis, log, smooth, 2 * columns), wishes)
        _print(chart, columns, chosen=bool(wishes))


def _read(text: str, *, left: bool, timeout_s: float) -> Subject:
    address = Address.parse(text)
    with open_run(address.uri, timeout_s=timeout_s, everything=True) as run:
        tip = find_snapshot(run, address) if names_snapshot(text) else None
        return read_subject(run.store, run.catalog, str(address), tip=tip, left=left, say=_say)


def _fineness(subjects: Sequence[Subject]) -> int:
    """A page of many curves has fewer points of each: about a hundred thousand altogether."""
    curves = sum(len(names) for one in subjects for track in one.tracks for names in track.history.values())
    return max(100, min(2000, 25_000 // max(1, curves)))


def _say(text: str) -> None:
    click.echo(f"spotckpt: {text}", err=True)


def _draw_png(path: Path, chart: Chart, width: int) -> str:
    from spotckpt.curves.png import draw_png

    write_file(path, draw_png(chart, width=width))
    return _told(path, chart)


def _draw_html(path: Path, chart: Chart) -> str:
    from spotckpt.curves.html import draw_html

    write_file(path, draw_html(chart).encode())
    return _told(path, chart)


def _told(path: Path, chart: Chart) -> str:
    left_out = f", without {', '.join(chart.others)}" if chart.others else ""
    return f"{path}: {len(chart.panels)} panel{'' if len(chart.panels) == 1 else 's'}{left_out}"


def _print(chart: Chart, columns: int, *, chosen: bool) -> None:
    out = output.console(most=columns)
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    if not unicode and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names may have letters that it cannot show
    for line in draw_text(chart, width=columns, unicode=unicode, coloured=out.color_system is not None):
        out.print(line, soft_wrap=True)
    if chart.others and not chosen:
        _say(f"not drawn, as there are so many (--metric): {', '.join(chart.others)}")


def _document(subject: Subject) -> dict[str, Any]:
    lines = [{**asdict(track.line), "tip": str(track.line.tip), "metrics": _metrics(track)} for track in subject.tracks]
    return {"uri": subject.uri, "forked_from": list(map(asdict, subject.ancestors)), "lines": lines}


def _metrics(track: Any) -> dict[str, int]:
    return {f"{set_}/{name}": len(series) for set_, names in track.history.items() for name, series in names.items()}
