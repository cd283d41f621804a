"""What is exported is what was logged: every bit of every number, and what is no number as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.curves.tables import chunks, meant, write_csv, write_jsonl, write_parquet
from spotckpt.errors import UsageError
from tests.curves.made import Columns, history


class Objects(list):
    """A series of other values than numbers, as the reader of a history gives it."""

    is_scalar = False

    def __init__(self, values: list[Any]) -> None:
        super().__init__(values)
        self.steps = list(range(len(values)))
        self.epochs = [-1] * len(values)


def written(write: Any, found: Any, globs: tuple[str, ...] = ()) -> bytes:
    file = io.BytesIO()
    write(chunks(meant(found, globs)), file)
    return file.getvalue()


def bits(values: Any) -> list[bytes]:
    return [b"nan" if math.isnan(value) else struct.pack("d", value) for value in values]


@given(st.lists(st.floats(), max_size=50))
def test_every_float_comes_back(values: list[float]) -> None:
    found = history(train__loss=Columns(range(len(values)), values))
    rows = list(csv.DictReader(io.StringIO(written(write_csv, found).decode())))
    assert bits(float(row["value"]) for row in rows) == bits(values)
    lines = [json.loads(line) for line in written(write_jsonl, found).splitlines()]
    assert bits(float(line["value"]) for line in lines) == bits(values)


def test_what_is_no_number_is_json() -> None:
    values = [[[1, 2], [3, float("nan")]], 'text, with "quotes" and\na line', {"cat": 0.5}, np.eye(2), None]
    found = history(valid__confusion=Objects(values), valid__top1=Columns([7], [0.5], per_epoch=5))
    expected = [[[1, 2], [3, "nan"]], values[1], {"cat": 0.5}, [[1.0, 0.0], [0.0, 1.0]], None]
    rows = list(csv.DictReader(io.StringIO(written(write_csv, found).decode(), newline="")))
    assert [json.loads(row["value"]) for row in rows[:5]] == expected
    assert [row["epoch"] for row in rows] == [""] * 5 + ["1"]
    lines = [json.loads(line) for line in written(write_jsonl, found).splitlines()]
    assert [line["value"] for line in lines] == [*expected, 0.5]
    assert [line["epoch"] for line in lines] == [None] * 5 + [1]
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = parquet.read_table(io.BytesIO(written(write_parquet, found))).to_pydict()
    assert [json.loads(text) for text in columns["json"][:5]] == expected and columns["json"][5] is None
    assert columns["value"] == [None] * 5 + [0.5] and columns["epoch"] == [None] * 5 + [1]


def test_parquet_keeps_every_bit() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    values = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1]
    found = history(train__loss=Columns(range(6), values))
    assert bits(parquet.read_table(io.BytesIO(written(write_parquet, found))).to_pydict()["value"]) == bits(values)


def test_many_rows_are_written_piece_by_piece_and_patterns_choose() -> None:
    found = history(train__loss=Columns(np.arange(200_000), np.zeros(200_000)), valid__top1=Columns([1], [2.0]))
    assert written(write_csv, found).count(b"\n") == 200_002
    assert written(write_csv, found, ("valid/*",)).count(b"\n") == 2
    assert written(write_csv, found, ("top1",)).count(b"\n") == 2
    with pytest.raises(UsageError, match="no metric is called x/top1; there are train/loss, valid/top1"):
        written(write_csv, found, ("x/top1",))
