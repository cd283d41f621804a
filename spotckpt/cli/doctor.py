"""`spotckpt doctor`: will it fit into two minutes?"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from spotckpt.address import Address
from spotckpt.cli import output
from spotckpt.cli.runs import find_snapshot, open_run
from spotckpt.config import parse_bytes
from spotckpt.errors import NotFound, SpotckptError, StoreError

if TYPE_CHECKING:
    from spotckpt.doctor.facts import State
    from spotckpt.doctor.row import Row

_STYLES = {"fits": "green", "does not fit": "bold red", "advice": "yellow"}


@click.command(
    epilog="""\b
Examples:
  spotckpt doctor s3://bucket/run
  spotckpt doctor s3://bucket/new-run --state-bytes 10GB
"""
)
@click.argument("address")
@click.option("--state-bytes", default="", help="Size of a snapshot, as 10GB.  [default: the newest snapshot's]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=2, max=60),
    default=5.0,
    show_default=True,
    help="How long each direction is measured at most.",
)
@click.option("--metadata-endpoint", default="", help="Ask here for notices instead of EC2's own address.")
@output.timeout_option
@output.json_option
def doctor(
    address: str, *, state_bytes: str, seconds: float, metadata_endpoint: str, timeout_s: float, as_json: bool
) -> int:
    """Measure whether a snapshot fits into a spot notice here.

    ADDRESS is URI[@SELECTOR], of a run that is there or of one that is to be. Uploads and downloads one test object,
    asks for each permission, for the metadata service and for room to stage, and says what to do about what does not
    fit. The object is deleted; where that is denied it stays, empty, below doctor/. Exit status 1 if something does not
    fit.
    """
    from spotckpt.doctor import machine
    from spotckpt.doctor.bucket import examine
    from spotckpt.doctor.facts import Facts
    from spotckpt.doctor.judge import all_fit, judge

    parsed = Address.parse(address)
    given = parse_bytes(state_bytes, name="--state-bytes") if state_bytes else None
    with _saying("measuring"):
        metadata = machine.ask_metadata(metadata_endpoint)
        bucket = examine(parsed.uri, seconds=seconds, timeout_s=timeout_s)
        state = _state(parsed, given, trouble=bucket.trouble, timeout_s=timeout_s)
        facts = Facts(state, bucket, metadata, machine.look(parsed.uri))
    rows = judge(facts)
    if as_json:
        output.emit({"uri": parsed.uri, "fits": all_fit(rows), "rows": list(map(asdict, rows)), "facts": asdict(facts)})
    else:
        _show(parsed.uri, rows)
    return 0 if all_fit(rows) else 1


def _state(address: Address, given: int | None, *, trouble: str, timeout_s: float) -> State:
    from spotckpt.config import size_text
    from spotckpt.doctor.facts import State
    from spotckpt.snapshot.fetch import read_manifest

    if given is not None:
        return State(given, "--state-bytes")
    if trouble:
        return State(None, "the store cannot be used")
    try:
        with open_run(address.uri, timeout_s=timeout_s) as run:
            manifest = read_manifest(run.store, find_snapshot(run, address), run_id=run.run_id)
    except NotFound:
        return State(None, "there is no run here yet")
    except SpotckptError as error:
        return State(None, error.cause if isinstance(error, StoreError) else error.message)
    return State(manifest.data_bytes, f"{manifest.snapshot}, which sent {size_text(manifest.uploaded_bytes)}")


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """On a terminal, that something goes on."""
    if not sys.stderr.isatty():
        yield
        return
    with output.console(sys.stderr).status(f"{what} …"):
        yield


def _show(uri: str, rows: Sequence[Row]) -> None:
    output.emit_line(uri, style="bold")
    output.emit_line()
    cells = [(row.check, row.found, row.verdict) for row in rows]
    styles = [_STYLES.get(row.verdict, "") for row in rows]
    output.emit_table(output.folded(("CHECK", "FOUND", "VERDICT"), cells, styles, fold="FOUND"), most=output.WIDTH)
    advised = [row for row in rows if row.remedy]
    if advised:
        output.emit_line()
        output.emit_line("What to do:")
        output.emit_pairs((row.check, row.remedy) for row in advised)
