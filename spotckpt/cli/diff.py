"""`spotckpt diff`: what two snapshots differ in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from spotckpt.address import Address
from spotckpt.cli import output
from spotckpt.cli.runs import find_snapshot, open_run
from spotckpt.snapshot.differences import Differences, MetricDifference, Side, Sides, TensorDifference, compare
from spotckpt.snapshot.fetch import read_manifest
from spotckpt.snapshot.manifest import Manifest

THEY_DIFFER = 1
_SHOWN = 30
_LONGEST = 28


@click.command(
    epilog="""\b
Example:
  spotckpt diff s3://bucket/run@step=1200 s3://bucket/run-lr01
"""
)
@click.argument("a")
@click.argument("b")
@output.timeout_option
@output.json_option
def diff(a: str, b: str, timeout_s: float, as_json: bool) -> int:
    """Compare two snapshots, of one run or of two.

    A and B are URI[@SELECTOR]. Compares tensors (values, shapes, dtypes, the largest difference of each), all other
    values of the state, and the metric history. What is equal by its digest is not downloaded. Exit status 0 if the
    states are bit-identical, 1 if they differ; arguments and environment are listed and do not count.
    """
    with _side(a, timeout_s) as left, _side(b, timeout_s) as right:
        with output.progress("comparing", left.manifest.data_bytes + right.manifest.data_bytes) as progress:
            found = compare(left, right, progress)
        names = [f"{side.store.uri}@{side.manifest.snapshot}" for side in (left, right)]
        manifests = (left.manifest, right.manifest)
    if as_json:
        output.emit({"a": names[0], "b": names[1], **_document(found, manifests)})
    else:
        _show(names, manifests, found)
    return 0 if found.identical else THEY_DIFFER


@contextmanager
def _side(text: str, timeout_s: float) -> Iterator[Side]:
    address = Address.parse(text)
    with open_run(address.uri, timeout_s=timeout_s) as run:
        snapshot = find_snapshot(run, address)
        yield Side(run.store, read_manifest(run.store, snapshot, run_id=run.run_id))


def _document(found: Differences, manifests: Sequence[Manifest]) -> dict[str, Any]:
    return {
        "identical": found.identical,
        "steps": [manifest.step for manifest in manifests],
        **asdict(found),
    }


def _show(names: Sequence[str], manifests: Sequence[Manifest], found: Differences) -> None:
    for letter, name, manifest in zip("AB", names, manifests, strict=True):
        output.emit_line(f"{letter}  {name}, step {manifest.step}")
    _table(("TENSOR", "DTYPE", "SHAPE", "DIFFERING", "LARGEST"), [_tensor(one) for one in _worst_first(found.tensors)])
    _table(("VALUE", "A", "B"), [(name, *_sides(sides)) for name, sides in found.values.items()])
    _table(("METRIC", "POINTS", "SINCE STEP", "DIFFERING", "LARGEST"), [_metric(one) for one in found.metrics])
    _table(("ARGUMENT", "A", "B"), [(name, *_sides(sides)) for name, sides in found.arguments.items()])
    _table(("ENVIRONMENT", "A", "B"), [(name, *_sides(sides)) for name, sides in found.environment.items()])
    output.emit_line()
    output.emit_line(_verdict(found), style="bold")


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    output.emit_line()
    right = () if columns[1:] == ("A", "B") else columns[1:]
    output.emit_table(output.table(columns, rows[:_SHOWN], right=right, elastic=columns[0]))
    if len(rows) > _SHOWN:
        output.emit_line(f"and {len(rows) - _SHOWN} more (--json lists all)")


def _worst_first(tensors: Sequence[TensorDifference]) -> list[TensorDifference]:
    """What cannot be compared, NaN, then the largest; the run's own, as generators, after the user's."""

    def rank(one: TensorDifference) -> tuple[bool, bool, float]:
        certain = one.largest is not None and not math.isnan(one.largest)
        return one.name.startswith("run/"), certain, -(one.largest or 0.0) if certain else 0.0

    return sorted(tensors, key=rank)


def _tensor(one: TensorDifference) -> tuple[str, ...]:
    dtype, shape = (_both(one, place) for place in (0, 1))
    if one.largest is None:
        return one.name, dtype, shape, "-", "-"
    differing = f"{one.differing} of {one.elements}" if one.differing else "bits only"
    return one.name, dtype, shape, differing, output.number(one.largest)


def _both(one: TensorDifference, place: int) -> str:
    sides = ["-" if side is None else _kind(side[place]) for side in (one.a, one.b)]
    return sides[0] if sides[0] == sides[1] else " → ".join(sides)


def _kind(value: str | tuple[int, ...]) -> str:
    return value if isinstance(value, str) else " x ".join(map(str, value)) or "scalar"


def _metric(one: MetricDifference) -> tuple[str, ...]:
    points = str(one.points[0]) if one.points[0] == one.points[1] else f"{one.points[0]} → {one.points[1]}"
    largest = "-" if one.largest is None else output.number(one.largest)
    return one.name, points, str(one.since), str(one.differing), largest


def _sides(sides: Sides) -> tuple[str, str]:
    a, b = (_short(sides[side]) if side in sides else "-" for side in "ab")
    return a, b


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _verdict(found: Differences) -> str:
    what: Mapping[str, tuple[int, int]] = {
        "tensors": (len(found.tensors), found.num_tensors),
        "values": (len(found.values), found.num_values),
        "metrics": (len(found.metrics), found.num_metrics),
    }
    if found.identical:
        counted = ", ".join(f"{total} {name}" for name, (_, total) in what.items())
        return f"bit-identical: {counted}"
    counted = ", ".join(f"{count} of {total} {name}" for name, (count, total) in what.items() if count)
    return f"they differ: {counted}"
