"""The metric history as a table: one row for each value, exactly as it was logged."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, NamedTuple

from spotckpt.errors import UsageError
from spotckpt.snapshot.metrics import History, Series

COLUMNS = ("set", "name", "step", "epoch", "value")
_ROWS_AT_ONCE = 1 << 16


class Chunk(NamedTuple):
    """Rows of one metric: epochs are None outside epochs, values floats, or JSON if they are no numbers."""

    set: str
    name: str
    steps: list[int]
    epochs: list[int | None]
    values: list[Any]
    is_scalar: bool


def meant(history: History, globs: Sequence[str]) -> dict[tuple[str, str], Series]:
    """The metrics that are meant, all if there is no pattern, by set and name.

    Raises:
        UsageError: a pattern means none.
    """
    known = {(set_, name): series for set_, names in history.items() for name, series in names.items()}
    patterns = [glob if "/" in glob else f"*/{glob}" for glob in globs]
    for pattern in patterns:
        if not any(fnmatchcase("/".join(metric), pattern) for metric in known):
            names = ", ".join(map("/".join, known)) or "none"
            raise UsageError(f"no metric is called {pattern}", hint=f"there are {names}")
    return {
        metric: series
        for metric, series in known.items()
        if not globs or any(fnmatchcase("/".join(metric), pattern) for pattern in patterns)
    }


def chunks(series: Mapping[tuple[str, str], Series]) -> Iterator[Chunk]:
    """Every value, metric by metric, in the order of steps."""
    return (chunk for (set_, name), one in series.items() for chunk in _chunks(set_, name, one))


def write_csv(rows: Iterator[Chunk], file: BinaryIO) -> None:
    """With a heading; floats in their shortest exact spelling, and `nan`, `inf`, `-inf`; no epoch is empty."""
    file.write(f"{','.join(COLUMNS)}\n".encode())
    for chunk in rows:
        values = map(repr, chunk.values) if chunk.is_scalar else map(_json, chunk.values)
        epochs = ("" if epoch is None else epoch for epoch in chunk.epochs)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows((chunk.set, chunk.name, *row) for row in zip(chunk.steps, epochs, values, strict=True))
        file.write(text.getvalue().encode())


def write_jsonl(rows: Iterator[Chunk], file: BinaryIO) -> None:
    """One object a line; what JSON has no number for is `"nan"`, `"inf"`, `"-inf"`."""
    for chunk in rows:
        head = f'{{"set": {json.dumps(chunk.set)}, "name": {json.dumps(chunk.name)}'
        lines = (
            f'{head}, "step": {step}, "epoch": {"null" if epoch is None else epoch}, "value": {_json(value)}}}\n'
            for step, epoch, value in zip(chunk.steps, chunk.epochs, chunk.values, strict=True)
        )
        file.write("".join(lines).encode())


def write_parquet(rows: Iterator[Chunk], file: BinaryIO) -> None:
    """Columns as `COLUMNS`, `value` a double, and beside it `json`, which has what is no number.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError("parquet needs pyarrow", hint='pip install "spotckpt[curves]"') from error
    word = arrow.dictionary(arrow.int32(), arrow.string())
    kinds = (word, word, arrow.int64(), arrow.int64(), arrow.float64(), arrow.string())
    schema = arrow.schema(list(zip((*COLUMNS, "json"), kinds, strict=True)))
    with parquet.ParquetWriter(file, schema) as writer:
        for chunk in rows:
            nothing = [None] * len(chunk.steps)
            values = (chunk.values, nothing) if chunk.is_scalar else (nothing, list(map(_json, chunk.values)))
            names = ([chunk.set] * len(nothing), [chunk.name] * len(nothing))
            columns = zip((*names, chunk.steps, chunk.epochs, *values), schema.types, strict=True)
            arrays = [arrow.array(column, kind) for column, kind in columns]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))


def _chunks(set_: str, name: str, series: Series) -> Iterator[Chunk]:
    if not series.is_scalar:
        places = [None if epoch < 0 else epoch for epoch in series.epochs]
        yield Chunk(set_, name, list(series.steps), places, list(series), False)
        return
    steps, epochs, values = series.columns()
    for first in range(0, len(steps), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        known = [None if epoch < 0 else epoch for epoch in epochs[part].tolist()]
        yield Chunk(set_, name, steps[part].tolist(), known, values[part].tolist(), True)


def _json(value: Any) -> str:
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """As JSON can hold it: arrays as lists, what it has no number for as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    if callable(getattr(value, "tolist", None)):  # arrays and tensors
        return _plain(value.tolist())
    return value if isinstance(value, str | int | bool | None) else str(value)
