"""What two snapshots differ in, of one run or of two. Tensors whose digests are equal are not read.

Bit-identical means: the same tensors with the same bytes, the same values beside them, the same metric history. Where a
tensor lay (its device, its pack) and what describes a snapshot (its time, arguments, environment) does not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from spotckpt.errors import UsageError
from spotckpt.snapshot.fetch import GROUP_BYTES, read_part, read_tensors
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.metrics import History, Series
from spotckpt.snapshot.numbers import Distance, distance
from spotckpt.snapshot.part import Part, TensorEntry
from spotckpt.snapshot.tree import bounded_depth
from spotckpt.store.base import Progress, Store

_PAIRS = ("$ordered", "$dict", "$counter")
_PLACE = ("device",)

Sides: TypeAlias = "dict[str, Any]"
"""What is there on the sides "a" and "b"; a side that lacks it is left out."""


@dataclass(frozen=True)
class Side:
    """A snapshot: where it is, and its manifest."""

    store: Store
    manifest: Manifest


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is not the same.

    Attributes:
        a, b: dtype and shape on each side, None where it is missing.
        elements: how many it has; 0 if the shapes differ.
        differing: how many of them have another value; 0 if only bits differ (-0.0, or NaNs).
        largest: the largest absolute difference; None if that cannot be told.
    """

    name: str
    a: tuple[str, tuple[int, ...]] | None
    b: tuple[str, tuple[int, ...]] | None
    elements: int = 0
    differing: int = 0
    largest: float | None = None


@dataclass(frozen=True)
class MetricDifference:
    """A metric whose history is not the same.

    Attributes:
        points: on each side.
        since: the step of the first point that differs.
        differing: points of steps that both have, with another value.
        largest: the largest absolute difference of these; None if there are none, or they are no numbers.
    """

    name: str
    points: tuple[int, int]
    since: int
    differing: int
    largest: float | None


@dataclass
class Differences:
    """All that was found.

    Attributes:
        tensors, metrics: that are not the same.
        values: path → what there is on each side, "a" and "b", as JSON.
        arguments, environment: likewise; they do not count.
        num_tensors, num_values, num_metrics: compared.
        read_bytes: of tensors.
    """

    tensors: list[TensorDifference] = field(default_factory=list)
    values: dict[str, Sides] = field(default_factory=dict)
    metrics: list[MetricDifference] = field(default_factory=list)
    arguments: dict[str, Sides] = field(default_factory=dict)
    environment: dict[str, Sides] = field(default_factory=dict)
    num_tensors: int = 0
    num_values: int = 0
    num_metrics: int = 0
    read_bytes: int = 0

    @property
    def identical(self) -> bool:
        """Whether the states are the same, bit for bit."""
        return not (self.tensors or self.values or self.metrics)


@dataclass(frozen=True)
class _Pair:
    """A tensor of both sides whose bytes are to be compared."""

    a: int
    b: int
    entry_a: TensorEntry
    entry_b: TensorEntry

    @property
    def size_bytes(self) -> int:
        return self.entry_a.size_bytes + self.entry_b.size_bytes


def compare(a: Side, b: Side, progress: Progress | None = None) -> Differences:
    """Compares two snapshots, some hundred MiB of their tensors in memory at a time.

    Args:
        a, b: the snapshots.
        progress: told the bytes of tensors that came.

    Raises:
        Corrupt, LimitExceeded: one of them cannot be read.
        UsageError: they are of different numbers of ranks.
    """
    if a.manifest.world_size != b.manifest.world_size:
        sizes = f"{a.manifest.world_size} and {b.manifest.world_size}"
        raise UsageError(f"snapshots of {sizes} ranks cannot be compared", hint="compare two of as many ranks")
    found = Differences(
        arguments=_changed(*({**side.manifest.arguments, **side.manifest.overrides} for side in (a, b))),
        environment=_changed(a.manifest.environment, b.manifest.environment),
    )
    for rank in range(a.manifest.world_size):
        parts = read_part(a.store, a.manifest, rank), read_part(b.store, b.manifest, rank)
        _compare_tensors((a.store, b.store), parts, found, progress)
        _compare_values(parts, found)
    _compare_metrics(read_history(a.store, a.manifest), read_history(b.store, b.manifest), found)
    return found


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Sides]:
    """What differs, by name; 1, 1.0 and true do."""
    both = {name: {side: of[name] for side, of in (("a", a), ("b", b)) if name in of} for name in {**a, **b}}
    return {name: sides for name, sides in both.items() if len(sides) == 1 or _text(sides["a"]) != _text(sides["b"])}


# Tensors


def _compare_tensors(
    stores: tuple[Store, Store], parts: tuple[Part, Part], found: Differences, progress: Progress | None
) -> None:
    rows_a, rows_b = ({entry.name: row for row, entry in enumerate(part.tensors)} for part in parts)
    names = list({**rows_a, **rows_b})
    found.num_tensors += len(names)
    pairs = []
    for name in names:
        entry_a = parts[0].tensors[rows_a[name]] if name in rows_a else None
        entry_b = parts[1].tensors[rows_b[name]] if name in rows_b else None
        if entry_a is None or entry_b is None or entry_a.shape != entry_b.shape:
            found.tensors.append(TensorDifference(name, _kind(entry_a), _kind(entry_b)))
        elif not _is_same(entry_a, entry_b):
            pairs.append(_Pair(rows_a[name], rows_b[name], entry_a, entry_b))
    for group in _groups(pairs):
        bodies_a = read_tensors(stores[0], parts[0], [pair.a for pair in group], progress)
        bodies_b = read_tensors(stores[1], parts[1], [pair.b for pair in group], progress)
        found.read_bytes += sum(pair.size_bytes for pair in group)
        found.tensors += [_difference(pair, one) for pair in group if (one := _apart(pair, bodies_a, bodies_b))]


def _kind(entry: TensorEntry | None) -> tuple[str, tuple[int, ...]] | None:
    return None if entry is None else (entry.dtype, entry.shape)


def _is_same(a: TensorEntry, b: TensorEntry) -> bool:
    """By digest; chunks that are cut in another way do not tell."""
    if a.dtype != b.dtype:
        return False
    return [(*one[2:5], one.digest) for one in a.chunks] == [(*one[2:5], one.digest) for one in b.chunks]


def _groups(pairs: Sequence[_Pair]) -> Iterator[list[_Pair]]:
    group: list[_Pair] = []
    room = GROUP_BYTES
    for pair in sorted(pairs, key=lambda pair: [(one.pack, one.offset) for one in pair.entry_a.chunks]):
        if group and pair.size_bytes > room:
            yield group
            group, room = [], GROUP_BYTES
        group.append(pair)
        room -= pair.size_bytes
    if group:
        yield group


def _apart(pair: _Pair, bodies_a: dict[int, bytearray], bodies_b: dict[int, bytearray]) -> Distance | None:
    """None if the bytes are the same after all."""
    a, b = bodies_a.pop(pair.a), bodies_b.pop(pair.b)
    if pair.entry_a.dtype == pair.entry_b.dtype and a == b:
        return None
    return distance(a, pair.entry_a.dtype, b, pair.entry_b.dtype)


def _difference(pair: _Pair, apart: Distance) -> TensorDifference:
    elements = 1
    for side in pair.entry_a.shape:
        elements *= side
    return TensorDifference(
        pair.entry_a.name, _kind(pair.entry_a), _kind(pair.entry_b), elements, apart.differing, apart.largest
    )


# Values


def _compare_values(parts: tuple[Part, Part], found: Differences) -> None:
    with bounded_depth():
        leaves_a, leaves_b = (dict(_leaves("", part.tree, part.tensors)) for part in parts)
    found.num_values += len({**leaves_a, **leaves_b})
    told = {one.name for one in found.tensors}
    for name, sides in _changed(leaves_a, leaves_b).items():
        if len(sides) == 2 or not told.intersection(_tensor_of(leaf) for leaf in sides.values()):
            found.values[name.removeprefix("objects.").replace(".state.", ".", 1)] = sides


def _tensor_of(leaf: Any) -> str | None:
    return (leaf.get("$tensor") or leaf.get("$array")) if isinstance(leaf, dict) else None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _leaves(path: str, tree: Any, tensors: Sequence[TensorEntry]) -> Iterator[tuple[str, Any]]:
    """Everything in a state tree that holds nothing else, by path; of a tensor which one it is."""
    if isinstance(tree, list) and any(isinstance(one, (dict, list)) for one in tree):
        yield f"{path}.length", len(tree)
        for index, one in enumerate(tree):
            yield from _leaves(f"{path}.{index}", one, tensors)
    elif isinstance(tree, dict) and (tag := next((tag for tag in _PAIRS if tag in tree), None)) is not None:
        for key, value in tree[tag]:
            yield from _leaves(f"{path}.{key}", value, tensors)
        yield from _leaves(f"{path}.{tag}", {name: value for name, value in tree.items() if name != tag}, tensors)
    elif isinstance(tree, dict) and not any(name.startswith("$") for name in tree):
        for key, value in tree.items():
            yield from _leaves(f"{path}.{key}".lstrip("."), value, tensors)
    else:
        yield path, _named(tree, tensors)


def _named(leaf: Any, tensors: Sequence[TensorEntry]) -> Any:
    if not isinstance(leaf, dict):
        return leaf
    plain = {name: value for name, value in leaf.items() if name not in _PLACE}
    for tag in ("$tensor", "$array"):
        if tag in plain:
            plain[tag] = tensors[plain[tag]].name
    return plain


# Metrics


def _compare_metrics(a: History, b: History, found: Differences) -> None:
    series_a, series_b = _series(a), _series(b)
    names = {**series_a, **series_b}
    found.num_metrics += len(names)
    for name in names:
        one = _compare_series(name, series_a.get(name), series_b.get(name))
        if one is not None:
            found.metrics.append(one)


def _series(history: History) -> dict[str, Series]:
    return {f"{name}/{metric}": series for name, metrics in history.items() for metric, series in metrics.items()}


def _compare_series(name: str, a: Series | None, b: Series | None) -> MetricDifference | None:
    if (a is None or a.is_scalar) and (b is None or b.is_scalar):
        return _compare_numbers(name, _columns(a), _columns(b))
    points_a, points_b = _points(a), _points(b)
    other = {at for at in points_a.keys() & points_b.keys() if repr(points_a[at]) != repr(points_b[at])}
    lone = points_a.keys() ^ points_b.keys()
    if not other and not lone:
        return None
    return MetricDifference(name, (len(points_a), len(points_b)), min(other | lone)[0], len(other), None)


def _columns(series: Series | None) -> tuple[Any, Any]:
    """The points' places, a (step, epoch) each, and their values."""
    columns = series.columns() if series is not None else (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    steps, epochs, values = columns
    places = np.empty(len(steps), [("step", np.int64), ("epoch", np.int64)])
    places["step"], places["epoch"] = steps, epochs
    return places, np.asarray(values, np.float64)


def _compare_numbers(name: str, a: tuple[Any, Any], b: tuple[Any, Any]) -> MetricDifference | None:
    both, rows_a, rows_b = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
    values_a, values_b = a[1][rows_a], b[1][rows_b]
    other = values_a.view(np.int64) != values_b.view(np.int64)
    since = [*both["step"][other][:1], *np.setxor1d(a[0], b[0], assume_unique=True)["step"][:1]]
    if not since:
        return None
    apart = distance(values_a.tobytes(), "F64", values_b.tobytes(), "F64")
    differing = int(np.count_nonzero(other))
    largest = apart.largest if differing else None
    return MetricDifference(name, (len(a[0]), len(b[0])), int(min(since)), differing, largest)


def _points(series: Series | None) -> dict[tuple[int, int], Any]:
    """(step, epoch) → value."""
    return {} if series is None else dict(zip(zip(series.steps, series.epochs, strict=True), series, strict=True))
