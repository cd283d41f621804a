"""`spotckpt fork`: another run that begins with a snapshot of this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing, nullcontext
from typing import Any

import click

from spotckpt.address import Address
from spotckpt.cli import output
from spotckpt.cli.runs import Run, find_snapshot, open_run
from spotckpt.config import size_text
from spotckpt.errors import AddressError, UsageError
from spotckpt.snapshot.fetch import read_manifest
from spotckpt.snapshot.fork import Fork
from spotckpt.snapshot.fork import fork as fork_run
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.open import open_run_store
from spotckpt.store.base import Store

_PYTHON_NAMES = {"True": True, "False": False, "None": None}


@click.command(
    epilog="""\b
Example:
  spotckpt fork s3://bucket/run@step=1200 s3://bucket/run-lr01 --set lr=0.01
"""
)
@click.argument("source")
@click.argument("destination")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Another value of an argument.")
@click.option("--copy", is_flag=True, help="Copy every byte: for another bucket, or without the right to pin.")
@output.timeout_option
@output.json_option
def fork(
    *, source: str, destination: str, assignments: tuple[str, ...], copy: bool, timeout_s: float, as_json: bool
) -> None:
    """Begin another run with a snapshot of this one, sharing its bytes.

    SOURCE is URI[@SELECTOR], without a selector the newest; DESTINATION the new run's URI. Nothing is trained: whoever
    starts a training at DESTINATION goes on from there. Packs and metric history are shared, and pinned in SOURCE, so
    that pruning leaves them alone. An argument of the train function that is --set has that value in every life of the
    fork, in place of what its caller gives. What was interrupted can be repeated.
    """
    overrides = dict(map(_assignment, assignments))
    parsed, target = Address.parse(source), _target(destination)
    with (
        open_run(parsed.uri, timeout_s=timeout_s) as run,
        closing(open_run_store(target, call_timeout_s=timeout_s)) as store,
    ):
        snapshot = find_snapshot(run, parsed)
        made = _fork(run, snapshot, store, overrides, copy=copy)
    if as_json:
        output.emit(_document(target, made))
    else:
        _show(target, made, overrides, copy=copy)


def _fork(run: Run, snapshot: SnapshotId, store: Store, overrides: Mapping[str, Any], *, copy: bool) -> Fork:
    total = 2 * read_manifest(run.store, snapshot).data_bytes if copy else 0
    with output.progress("copying", total) if copy else nullcontext() as progress:
        return fork_run(
            run.store,
            snapshot,
            store,
            overrides=overrides,
            copy=copy,
            progress=progress,
            say=lambda text: click.echo(f"spotckpt: {text}", err=True),
        )


def _target(text: str) -> str:
    address = Address.parse(text)
    if "@" in text.rpartition("/")[2]:
        raise AddressError(f"{text} names a snapshot", hint="the destination is a run of its own: s3://bucket/other")
    return address.uri


def _assignment(text: str) -> tuple[str, Any]:
    """`lr=0.01`: JSON, or else a word."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--set {text} is not NAME=VALUE", hint="as in --set lr=0.01")
    try:
        return name, _PYTHON_NAMES[value] if value in _PYTHON_NAMES else json.loads(value)
    except ValueError:
        return name, value


def _document(uri: str, made: Fork) -> dict[str, Any]:
    return {
        "uri": uri,
        "run_id": made.record.run_id,
        "snapshot": made.record.forked_as,
        "forked_from": [one.to_json() for one in made.record.forked_from],
        "overrides": dict(made.record.overrides),
        "data_bytes": made.manifest.data_bytes,
        "uploaded_bytes": made.manifest.uploaded_bytes,
    }


def _show(uri: str, made: Fork, overrides: dict[str, Any], *, copy: bool) -> None:
    parent = made.record.forked_from[0]
    output.emit_line(f"{uri} begins with {parent.uri}@{parent.snapshot}")
    held = "copied" if copy else "shared, and pinned there"
    sent = f"{size_text(made.manifest.data_bytes)} {held}; {size_text(made.manifest.uploaded_bytes)} uploaded"
    output.emit_line(sent)
    before = made.manifest.arguments
    for name, value in overrides.items():
        output.emit_line(f"{name}: {json.dumps(before.get(name))} → {json.dumps(value)}")
