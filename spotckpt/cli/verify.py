"""`spotckpt verify`: is every byte what was committed?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from spotckpt.address import Address
from spotckpt.cli import output
from spotckpt.cli.runs import Run, find_snapshot, names_snapshot, open_run
from spotckpt.config import size_text
from spotckpt.errors import Corrupt, SnapshotError
from spotckpt.snapshot import fetch
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest


@dataclass(frozen=True)
class Finding:
    """What was found about one snapshot; without errors it is whole."""

    snapshot: str
    tensors: int = 0
    read_bytes: int = 0
    errors: tuple[SnapshotError, ...] = ()


@click.command(
    epilog="""\b
Example:
  spotckpt verify s3://bucket/run
"""
)
@click.argument("address")
@output.timeout_option
@output.json_option
def verify(address: str, timeout_s: float, as_json: bool) -> None:
    """Read whole snapshots and check every digest.

    ADDRESS is URI[@SELECTOR]; without a selector all committed snapshots of the run are read, and all its records.
    Exit status 31 if anything is not what was committed; the key and the digest are named.
    """
    parsed = Address.parse(address)
    one = names_snapshot(address)
    with open_run(parsed.uri, timeout_s=timeout_s, everything=not one) as run:
        findings = _check(run, [find_snapshot(run, parsed)] if one else sorted(run.catalog.snapshots))
    errors = [error for finding in findings for error in finding.errors] + ([] if one else run.problems())
    if as_json:
        output.emit(_document(parsed.uri, findings, errors))
    else:
        _show(findings, errors)
    if errors:
        raise _worst(errors)


def _check(run: Run, ids: Sequence[SnapshotId]) -> list[Finding]:
    manifests = fetch.read_manifests(run.store, ids, run_id=run.run_id)
    total = sum(one.data_bytes for one in manifests.values() if isinstance(one, Manifest))
    with output.progress("checking", total) as advance:
        return [_check_one(run, one, advance) for one in ids]


def _check_one(run: Run, one: SnapshotId, advance: Callable[[int], None]) -> Finding:
    try:
        found = fetch.verify(run.store, one, advance, run_id=run.run_id)
    except SnapshotError as error:
        return Finding(str(one), errors=(error,))
    errors = tuple(Corrupt(problem, hint="use another snapshot") for problem in dict.fromkeys(found.problems))
    return Finding(str(one), found.tensors, found.read_bytes, errors)


def _document(uri: str, findings: Sequence[Finding], errors: Sequence[SnapshotError]) -> dict[str, object]:
    return {
        "uri": uri,
        "whole": not errors,
        "problems": [str(error) for error in errors],
        "snapshots": [
            {
                "snapshot": finding.snapshot,
                "whole": not finding.errors,
                "tensors": finding.tensors,
                "read_bytes": finding.read_bytes,
                "problems": [str(error) for error in finding.errors],
            }
            for finding in findings
        ],
    }


def _show(findings: Sequence[Finding], errors: Sequence[SnapshotError]) -> None:
    rows = [
        (one.snapshot, str(one.tensors), size_text(one.read_bytes), "NOT WHOLE" if one.errors else "whole")
        for one in findings
    ]
    if rows:
        output.emit_table(output.table(("SNAPSHOT", "TENSORS", "READ", "RESULT"), rows, right=("TENSORS", "READ")))
    else:
        output.emit_line("no snapshot has been committed")
    for error in errors:
        output.emit_line(f"  {error.message}", style="red")


def _worst(errors: Sequence[SnapshotError]) -> SnapshotError:
    """One error for all: the first that says corrupt, as that is the status to be told by, else the first."""
    first = next((error for error in errors if isinstance(error, Corrupt)), errors[0])
    if len(errors) == 1:
        return first
    more = f"{len(errors) - 1} more problem{'s' if len(errors) > 2 else ''}"
    return type(first)(f"{first.message}, and {more}", hint=first.hint)
