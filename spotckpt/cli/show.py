"""`spotckpt show`: what a snapshot holds."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from spotckpt.address import Address
from spotckpt.cli import output
from spotckpt.cli.runs import Run, find_snapshot, open_run
from spotckpt.config import size_text
from spotckpt.errors import Corrupt
from spotckpt.moving.formats import OWN_KEYS
from spotckpt.snapshot.choose import lineage
from spotckpt.snapshot.fetch import read_manifest, read_part
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.part import Part, TensorEntry
from spotckpt.snapshot.tree import decode

_LINEAGE_SHOWN = 5
_LONGEST_VALUE = 200


@click.command(
    epilog="""\b
Examples:
  spotckpt show s3://bucket/run
  spotckpt show s3://bucket/run@step=1200 --json
"""
)
@click.argument("address")
@output.timeout_option
@output.json_option
def show(address: str, timeout_s: float, as_json: bool) -> None:
    """Show what a snapshot holds, without downloading tensors.

    ADDRESS is URI[@SELECTOR]; without a selector it is the snapshot that a restart would continue. Shows the keys, as
    those of the dictionary that `spotckpt pull` writes; every tensor with its shape, dtype and size; other values;
    metrics, arguments, environment, and what it descends from.
    """
    parsed = Address.parse(address)
    with open_run(parsed.uri, timeout_s=timeout_s) as run:
        snapshot = find_snapshot(run, parsed)
        manifest = read_manifest(run.store, snapshot, run_id=run.run_id)
        parts = [read_part(run.store, manifest, rank) for rank in range(manifest.world_size)]
        ancestors = _ancestors(run, snapshot)
    if as_json:
        output.emit(_document(parsed.uri, manifest, parts, ancestors))
    else:
        _show(parsed.uri, manifest, parts, ancestors)


def _ancestors(run: Run, snapshot: SnapshotId) -> list[str]:
    """What the snapshot was trained from, newest first; of other runs with their addresses."""
    line, record = lineage(run.catalog, snapshot.attempt).ids, run.catalog.run
    own = [str(one) for one in line[line.index(snapshot) :]] if snapshot in line else [str(snapshot)]
    forked = record.forked_from if record is not None and record.forked_as in own else ()
    return [*own[1:], *(f"{one.uri}@{one.snapshot}" for one in forked)]


def _document(uri: str, manifest: Manifest, parts: list[Part], ancestors: list[str]) -> Mapping[str, Any]:
    facts: dict[str, Any] = {"keys": _keys(parts)}
    facts |= {name: value for name, value in vars(manifest).items() if name not in ("parts", "packs")}
    return {
        "uri": uri,
        **facts,
        "best": {name: vars(best) for name, best in manifest.best.items()},
        "lost": None if manifest.lost is None else manifest.lost.to_json(),
        "parts": [vars(part) for part in manifest.parts],
        "packs": [vars(pack) for pack in manifest.packs],
        "lineage": ancestors,
        "tensors": [
            {"name": one.name, "dtype": one.dtype, "shape": one.shape, "size_bytes": one.size_bytes}
            for part in parts
            for one in part.tensors
        ],
        "state": [part.tree for part in parts],
    }


def _show(uri: str, manifest: Manifest, parts: list[Part], ancestors: list[str]) -> None:
    output.emit_line(f"{uri}@{manifest.snapshot}", style="bold")
    output.emit_line(f"dict_keys({_keys(parts)})")
    _section("", _facts(manifest))
    for part in parts:
        output.emit_line()
        if len(parts) > 1:
            output.emit_line(f"rank {part.rank}", style="bold")
        output.emit_table(_tensors(part))
    _section("VALUES", [pair for part in parts for pair in _part_values(part)])
    _show_metrics(manifest)
    anew = {name: f", from here on {_short(value)}" for name, value in manifest.overrides.items()}
    _section("ARGUMENTS", [(name, _short(value) + anew.get(name, "")) for name, value in manifest.arguments.items()])
    _section(
        "ENVIRONMENT", [(name, _short(value)) for name, value in manifest.environment.items() if value not in ("", [])]
    )
    _section("LINEAGE", _lineage(ancestors))


def _keys(parts: list[Part]) -> list[str]:
    """As `torch.load(FILE).keys()` gives them after `spotckpt pull`: what is tracked, and what a file has beside."""
    tracked = [name for part in parts for name in part.tree.get("objects", {})]
    return list(dict.fromkeys([*tracked, *OWN_KEYS]))


def _show_metrics(manifest: Manifest) -> None:
    metrics = sorted({*manifest.latest, *manifest.evaluated})
    if not metrics:
        return
    output.emit_line()
    rows = [
        (name, _value(manifest.latest, name), _value(manifest.evaluated, name), *_bests(manifest, name))
        for name in metrics
    ]
    columns = ("METRIC", "LATEST", "OF THESE WEIGHTS", "LOWEST", "HIGHEST")
    output.emit_table(output.table(columns, rows, right=columns[1:], elastic="METRIC"))


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    epoch = f", epoch {manifest.epoch}" if manifest.epoch >= 0 else ""
    yield "position", f"step {manifest.step}{epoch}" + (", the run is finished" if manifest.finished else "")
    when = f"{output.moment(manifest.committed)}, {output.ago(time.time() - manifest.committed)} ago"
    yield "committed", f"{when} ({manifest.reason})"
    sent = f"{size_text(manifest.data_bytes)} of tensors, {size_text(manifest.uploaded_bytes)} uploaded"
    yield "size", sent
    if manifest.lost is not None:
        yield "interruption before", f"{manifest.lost.steps} steps lost, {manifest.lost.seconds:.0f} s of training"
    if manifest.timings:
        yield "timings", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in manifest.timings.items())


def _lineage(ancestors: list[str]) -> Iterator[tuple[str, str]]:
    for number, one in enumerate(ancestors[:_LINEAGE_SHOWN]):
        yield ("" if number else "descends from"), one
    if not ancestors:
        yield "descends from", "nothing: this lineage began from scratch"
    elif len(ancestors) > _LINEAGE_SHOWN:
        yield "", f"and {len(ancestors) - _LINEAGE_SHOWN} more, back to {ancestors[-1]}"


def _section(title: str, pairs: Any) -> None:
    rows = list(pairs)
    if not rows:
        return
    if title:
        output.emit_line()
        output.emit_line(title, style="bold cyan")
    output.emit_pairs(rows)


def _value(values: Mapping[str, float], name: str) -> str:
    return output.number(values[name]) if name in values else "-"


def _bests(manifest: Manifest, name: str) -> tuple[str, ...]:
    bests = [manifest.best.get(f"{name}:{mode}") for mode in ("min", "max")]
    return tuple(f"{output.number(best.value)} at {best.step}" if best else "-" for best in bests)


def _tensors(part: Part) -> Any:
    rows = [(one.name, one.dtype, _shape(one), size_text(one.size_bytes)) for one in part.tensors]
    total = sum(one.size_bytes for one in part.tensors)
    counted = Counter(one.dtype for one in part.tensors)
    kinds = ", ".join(f"{number} {dtype}" for dtype, number in counted.most_common())
    rows.append((f"{len(part.tensors)} tensors: {kinds}" if rows else "no tensors", "", "", size_text(total)))
    return output.table(("KEY", "DTYPE", "SHAPE", "SIZE"), rows, right=("SHAPE", "SIZE"), elastic="KEY")


def _shape(entry: TensorEntry) -> str:
    return " x ".join(str(side) for side in entry.shape) or "-"


def _part_values(part: Part) -> Iterator[tuple[str, str]]:
    """The values of the objects and of `vars`. The run's own books are in the JSON only."""
    objects, run = part.tree.get("objects", {}), part.tree.get("run", {})
    for name, body in objects.items():
        yield from _values(name, body.get("state"))
    yield from _values("vars", run.get("vars", {}))


def _values(path: str, tree: Any) -> Iterator[tuple[str, str]]:
    """The tree's plain values by path; tensors have their own table."""
    pairs = _members(tree)
    if pairs is not None:
        for key, value in pairs:
            yield from _values(f"{path}.{key}", value)
    elif not (isinstance(tree, dict) and ("$tensor" in tree or "$array" in tree)):
        text = _short(_untagged(tree))
        yield path, text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _members(tree: Any) -> Iterable[tuple[Any, Any]] | None:
    """What a mapping holds, and a list with mappings in it; None for what is shown as it is."""
    if isinstance(tree, list) and any(isinstance(one, dict) for one in tree):
        return enumerate(tree)
    if not isinstance(tree, dict) or not tree:
        return None
    for tag in ("$ordered", "$dict", "$counter"):
        if tag in tree:
            return [(key, value) for key, value in tree[tag]]
    return None if any(key.startswith("$") for key in tree) else tree.items()


def _untagged(tree: Any) -> Any:
    """The value behind a tag, as in `{"$float": ...}`; one that only torch knows stays as it is."""
    try:
        return decode(tree)
    except Corrupt:
        return tree


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
