"""`spotckpt prune`, `pin` and `unpin`: what of a run is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click

from spotckpt.address import Address
from spotckpt.cli import output
from spotckpt.cli.runs import address_of_run, find_snapshot, open_run
from spotckpt.config import Best, Every, Keep, size_text
from spotckpt.errors import NotFound
from spotckpt.snapshot import pins
from spotckpt.snapshot.keys import SnapshotId, pin_key
from spotckpt.snapshot.prune import Pruning, preview
from spotckpt.snapshot.prune import prune as prune_run
from spotckpt.store.base import Store


@click.command(
    epilog="""\b
Example:
  spotckpt prune s3://bucket/run --keep-last 5 --keep-best valid/top1:max:3 --dry-run
"""
)
@click.argument("uri")
@click.option("--keep-last", type=click.IntRange(min=1), metavar="N", help="Keep the newest N.")
@click.option("--keep-every", multiple=True, metavar="STRETCH", help="Keep the first of each '1000 steps' or '6h'.")
@click.option("--keep-best", multiple=True, metavar="METRIC", help="Keep the best, as in valid/top1:max:3.")
@click.option("--abandoned", is_flag=True, help="Delete also what was left behind by going back.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; list what would be deleted, and why.")
@output.timeout_option
@output.json_option
def prune(
    *,
    uri: str,
    keep_last: int | None,
    keep_every: tuple[str, ...],
    keep_best: tuple[str, ...],
    abandoned: bool,
    dry_run: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Delete snapshots that no rule keeps, and leftovers.

    And what dead writers left behind. Several --keep options add up. Without any of them no snapshot is deleted. The
    newest snapshot, the last one without NaN, what the newest attempt continues, what is pinned, and everything that
    these refer to is always kept.
    """
    policy = _policy(keep_last, keep_every, keep_best)
    with _store(uri, timeout_s) as store:
        done = preview(store, policy, abandoned=abandoned) if dry_run else prune_run(store, policy, abandoned=abandoned)
    done.notes += _without_effect(policy, done)
    if as_json:
        output.emit({"uri": uri, "dry_run": dry_run, **_document(done)})
    else:
        _show(done, dry_run=dry_run)
    for note in done.notes:
        click.echo(f"spotckpt: {note}", err=True)


@click.command(
    epilog="""\b
Example:
  spotckpt pin s3://bucket/run@step=1200 baseline
"""
)
@click.argument("uri")
@click.argument("name")
@output.timeout_option
def pin(uri: str, name: str, timeout_s: float) -> None:
    """Keep a snapshot under a name, whatever is pruned.

    URI is that of a run, or URI@SELECTOR; without a selector it is the newest snapshot.
    """
    pin_key(name)
    address = Address.parse(uri)
    with open_run(address.uri, timeout_s=timeout_s) as run:
        snapshot = find_snapshot(run, address)
        pins.pin(run.store, name, snapshot)
    output.emit_line(f"{snapshot} is pinned as {name}")


@click.command(
    epilog="""\b
Example:
  spotckpt unpin s3://bucket/run baseline
"""
)
@click.argument("uri")
@click.argument("name")
@output.timeout_option
def unpin(uri: str, name: str, timeout_s: float) -> None:
    """Take a pin away.

    The snapshot stays until something prunes it.
    """
    key = pin_key(name)
    with _store(uri, timeout_s) as store:
        try:
            snapshot = pins.unpin(store, name)
        except NotFound as error:
            known = ", ".join(sorted(pins.read_pins(store))) or "none"
            raise NotFound("unpin", key, "there is no such pin", hint=f"the pins are: {known}") from error
    output.emit_line(f"{snapshot} is not pinned as {name} any more")


def _policy(last: int | None, every: tuple[str, ...], best: tuple[str, ...]) -> Keep | None:
    if last is None and not every and not best:
        return None
    return Keep(last or 1, tuple(map(Every.parse, every)), tuple(map(Best.parse, best)))


def _without_effect(policy: Keep | None, done: Pruning) -> Iterator[str]:
    """A metric that is misspelt keeps nothing, which should not be found out later."""
    for best in policy.best if policy else ():
        if not any(f" by {best.metric}" in why for why in done.plan.keep.values()):
            yield f"--keep-best {best.metric} keeps nothing: no snapshot is there whose weights were evaluated by it"


@contextmanager
def _store(uri: str, timeout_s: float) -> Iterator[Store]:
    """Of a run that is there."""
    with open_run(address_of_run(uri), timeout_s=timeout_s) as run:
        yield run.store


def _document(done: Pruning) -> Mapping[str, object]:
    return {
        "kept": _reasons(done.plan.keep),
        "pruned": _reasons(done.plan.drop),
        "objects": done.objects,
        "freed_bytes": done.freed_bytes,
        "unfinished_uploads": [write.key for write in done.uploads],
        "notes": done.notes,
    }


def _reasons(verdicts: Mapping[SnapshotId, str]) -> dict[str, str]:
    return {str(one): verdicts[one] for one in sorted(verdicts)}


def _show(done: Pruning, *, dry_run: bool) -> None:
    gone = "would go" if dry_run else "pruned"
    verdicts = {**{one: ("kept", why) for one, why in done.plan.keep.items()}}
    verdicts |= {one: (gone, why) for one, why in done.plan.drop.items()}
    rows = [(str(one), *verdicts[one]) for one in sorted(verdicts)]
    if rows:
        output.emit_table(output.folded(("SNAPSHOT", "", "WHY"), rows, [""] * len(rows), fold="WHY"))
    done_or_not = "would be " if dry_run else ""
    output.emit_line(
        f"{len(done.plan.drop)} of {len(rows)} snapshots and {len(done.objects)} objects "
        f"({size_text(done.freed_bytes)}) {done_or_not}deleted, "
        f"{len(done.uploads)} unfinished uploads {done_or_not}given up"
    )
