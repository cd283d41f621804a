"""The metric history as it stands in files: set → name → columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spotckpt.errors import Corrupt, UsageError
from spotckpt.snapshot.metrics import History

Columns = dict[str, dict[str, dict[str, Any]]]
"""set → name → `step` (int64[n]), `epoch` (int64[n], -1 outside epochs), `value` (float64[n], or a list where not all
values are numbers), and `given` (True) where the steps are the caller's own."""
_KINDS: dict[str, Any] = {"step": np.int64, "epoch": np.int64, "value": np.float64}


def columns_of(history: Mapping[str, Mapping[str, Any]]) -> Columns:
    """Copies of all of a history."""

    def of(series: Any) -> dict[str, Any]:
        given = {"given": True} if series.given else {}
        if series.is_scalar:
            return {field: np.array(one) for field, one in zip(_KINDS, series.columns(), strict=True)} | given
        steps, epochs = (np.array(one, np.int64) for one in (series.steps, series.epochs))
        return {"step": steps, "epoch": epochs, "value": list(series), **given}

    return {set_: {name: of(series) for name, series in names.items()} for set_, names in history.items()}


def checked(sets: Any, where: object) -> Columns:
    """Columns out of a file: tensors, arrays or lists, with values that a history can have.

    Raises:
        UsageError: they are no columns, or a step is none.
    """

    def of(path: str, columns: Any) -> dict[str, Any]:
        try:
            found = {field: _column(columns[field], kind) for field, kind in _KINDS.items()}
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{where}: {path} is no metric: {error!r:.100}", hint="take it out") from error
        lengths = {len(one) for one in found.values()}
        if len(lengths) > 1 or (found["step"] < 0).any() or (found["epoch"] < -1).any():
            raise UsageError(f"{where}: {path} has columns that do not fit, or steps below 0", hint="take it out")
        return found | ({"given": True} if columns.get("given") is True else {})

    if not isinstance(sets, Mapping):
        raise Corrupt(f"{where}: its history is none", hint="take it out")
    return {
        set_: {name: of(f"history/{set_}/{name}", columns) for name, columns in names.items()}
        for set_, names in sets.items()
    }


def _column(column: Any, kind: Any) -> Any:
    """One column; a list of values stays one."""
    if isinstance(column, list) and kind is np.float64:
        return column
    array = np.asarray(column.numpy() if isinstance(column, torch.Tensor) else column)
    if array.ndim != 1 or array.dtype != kind:
        raise ValueError(f"a column of {array.dtype}, with {array.ndim} axes")
    return array


def history_of(columns: Columns) -> History:
    """The history with these values. Raises UsageError for a name that none can have."""
    found = History()
    for set_, names in columns.items():
        for name, one in names.items():
            rows = (_listed(one[field]) for field in _KINDS)
            for step, epoch, value in zip(*rows, strict=True):
                found.log(set_, {name: value}, step, epoch, given=one.get("given", False))
    return found


def _listed(column: Any) -> Any:
    return column.tolist() if isinstance(column, np.ndarray) else column
