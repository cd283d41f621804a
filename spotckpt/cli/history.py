"""`spotckpt history`: the metrics of a run, for other programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import click

from spotckpt.address import Address
from spotckpt.cli import output
from spotckpt.cli.files import whole_file
from spotckpt.cli.runs import find_snapshot, names_snapshot, open_run
from spotckpt.curves.chart import Subject
from spotckpt.curves.read import read_subject
from spotckpt.curves.tables import Chunk, chunks, meant, write_csv, write_jsonl, write_parquet
from spotckpt.curves.tensorboard import event_file, write_events
from spotckpt.errors import UsageError

_EPILOG = """\b
Examples:
  spotckpt history s3://bucket/run --metric 'valid/*'
  spotckpt history s3://bucket/run --format parquet -o history.parquet
  spotckpt history s3://bucket/run@step=1200 --tensorboard runs/run
"""
_WRITERS: dict[str, Callable[[Iterator[Chunk], BinaryIO], None]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@click.command(epilog=_EPILOG)
@click.argument("address", metavar="URI")
@click.option("--metric", "-m", "metrics", multiple=True, help="SET/NAME or NAME, also with * and ?.")
@click.option("--format", "form", type=click.Choice(list(_WRITERS)), default="csv", show_default=True)
@click.option("-o", "--output", "to", type=click.Path(dir_okay=False, path_type=Path), help="Into this file.")
@click.option("--tensorboard", type=click.Path(file_okay=False, path_type=Path), help="Event files, into this folder.")
@output.timeout_option
def history(
    *, address: str, metrics: Sequence[str], form: str, to: Path | None, tensorboard: Path | None, timeout_s: float
) -> None:
    """Write the metrics of a run for other programs.

    URI may end in a selector: the history up to that snapshot. Each value is a row of set, name, step, epoch and value,
    as it was logged. Numbers are exact, NaN and infinities stay; values that are no numbers are JSON. A file is written
    whole or not at all. --tensorboard writes event files; their numbers are float32, as TensorBoard's own.
    """
    subject = _read(address, timeout_s=timeout_s)
    if tensorboard is not None:
        _write_events(tensorboard, subject, metrics)
        if to is None:
            return
    rows, write = chunks(meant(subject.tracks[0].history, metrics)), _WRITERS[form]
    if to is not None:
        with whole_file(to) as file:
            write(rows, file)
        output.emit_line(f"{to}: {form}")
        return
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("parquet is not for a terminal", hint="use -o FILE")
    write(rows, sys.stdout.buffer)


def _read(text: str, *, timeout_s: float) -> Subject:
    address = Address.parse(text)
    with open_run(address.uri, timeout_s=timeout_s, everything=True) as run:
        tip = find_snapshot(run, address) if names_snapshot(text) else None
        return read_subject(run.store, run.catalog, str(address), tip=tip, left=False, say=_say)


def _write_events(folder: Path, subject: Subject, metrics: Sequence[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}", hint="give another folder") from error
    path, track = event_file(folder, subject.run_id), subject.tracks[0]
    with whole_file(path) as file:
        left_out = write_events(track, meant(track.history, metrics), file)
    if left_out:
        _say(f"no numbers, and left out: {', '.join(left_out)}")
    output.emit_line(f"{path}: see it with tensorboard --logdir {folder}")


def _say(text: str) -> None:
    click.echo(f"spotckpt: {text}", err=True)
