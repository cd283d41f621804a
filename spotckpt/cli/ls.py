"""`spotckpt ls`: the attempts and snapshots of a run."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from spotckpt.cli import output
from spotckpt.cli.runs import AttemptRow, Overview, SnapshotRow, address_of_run, descent, read_overview
from spotckpt.config import size_text
from spotckpt.snapshot.records import RunRecord

_OF_A_FORK = re.compile(r"fork-[0-9a-f]{16}")


@click.command(
    epilog="""\b
Example:
  spotckpt ls s3://bucket/run
"""
)
@click.argument("uri")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="Show this many snapshots.")
@output.timeout_option
@output.json_option
def ls(uri: str, last: int, timeout_s: float, as_json: bool) -> None:
    """List the attempts and snapshots of a run.

    The newest come last. An attempt is released (over), live (its heartbeat is recent by this machine's clock) or
    stale. A snapshot whose manifest cannot be read is shown as such, and the exit status tells of it.
    """
    overview = read_overview(address_of_run(uri), last=last, timeout_s=timeout_s)
    if as_json:
        output.emit(_document(overview))
    else:
        _show(overview)
    if overview.problems:
        raise overview.problems[0]


def _document(overview: Overview) -> Mapping[str, Any]:
    return {
        "uri": overview.uri,
        "run": None if overview.run is None else _run(overview.run),
        "attempts": [asdict(row) for row in overview.attempts],
        "snapshots": [asdict(row) for row in overview.snapshots],
        "snapshots_not_shown": overview.not_shown,
    }


def _run(run: RunRecord) -> Mapping[str, Any]:
    return {
        "run_id": run.run_id,
        "created": run.created,
        "forked_from": [one.to_json() for one in run.forked_from],
        "overrides": run.overrides,
    }


def _show(overview: Overview) -> None:
    now = time.time()
    created = f", begun {output.ago(now - overview.run.created)} ago" if overview.run else ""
    output.emit_line(f"{overview.uri}{created}", style="bold")
    if overview.run and overview.run.forked_from:
        output.emit_line(descent(overview.run)[0])
    output.emit_line()
    output.emit_table(_attempts(overview.attempts, now))
    output.emit_line()
    if overview.not_shown:
        output.emit_line(f"{overview.not_shown} older snapshots are not shown (--last)")
    if overview.snapshots:
        output.emit_table(_snapshots(overview.snapshots, now))
    else:
        output.emit_line("no snapshot has been committed")


def _attempts(rows: Sequence[AttemptRow], now: float) -> Any:
    columns = ("ATTEMPT", "STATE", "STARTED", "BEAT", "HOST", "CONTINUES", "SNAPSHOTS")
    cells = [
        (
            str(row.attempt),
            row.state,
            _when(row.started, now),
            _when(row.heartbeat, now),
            row.host or "-",
            row.continues or "-",
            str(row.snapshots),
        )
        for row in rows
    ]
    right, expendable = ("ATTEMPT", "STARTED", "BEAT", "SNAPSHOTS"), ("HOST", "BEAT", "STARTED", "SNAPSHOTS")
    return output.table(columns, cells, right=right, elastic="HOST", expendable=expendable)


def _snapshots(rows: Sequence[SnapshotRow], now: float) -> Any:
    columns = ("SNAPSHOT", "STEP", "EPOCH", "REASON", "AGE", "SIZE", "METRICS")
    cells = [
        (row.snapshot, str(row.step), "-", "unreadable", "-", "-", row.problem)
        if row.problem
        else (
            row.snapshot,
            str(row.step),
            "-" if row.epoch is None or row.epoch < 0 else str(row.epoch),
            _reason(row),
            _when(row.committed, now),
            size_text(row.data_bytes),
            _metrics(row.latest),
        )
        for row in rows
    ]
    right, expendable = ("STEP", "EPOCH", "AGE", "SIZE"), ("SIZE", "EPOCH", "METRICS", "AGE")
    return output.table(columns, cells, right=right, elastic="METRICS", expendable=expendable)


def _reason(row: SnapshotRow) -> str:
    end = " (end)" if row.finished and row.reason != "final" else ""
    by_hand = [name for name in row.pins if not _OF_A_FORK.fullmatch(name)]
    forked = ", forked" if len(by_hand) < len(row.pins) else ""
    return f"{row.reason}{end}{forked}" + (f", pinned as {', '.join(by_hand)}" if by_hand else "")


def _metrics(latest: Mapping[str, float]) -> str:
    """What is not finite first, then those of validation: there may be room for one only."""
    names = sorted(latest, key=lambda name: (math.isfinite(latest[name]), name.startswith("train/"), name))
    return "  ".join(f"{name} {output.number(latest[name])}" for name in names)


def _when(wall: float | None, now: float) -> str:
    return "-" if wall is None else output.ago(now - wall)
