"""Reading the metric history of a snapshot without its tensors: a curve of a large model costs a few requests."""

from __future__ import annotations

from typing import Any

from spotckpt.deadline import Deadline
from spotckpt.errors import Corrupt
from spotckpt.snapshot.arrival import OLDER
from spotckpt.snapshot.fetch import read_part, read_tensors
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.tree import decode
from spotckpt.store.base import Store


def read_history(store: Store, manifest: Manifest, *, deadline: Deadline | None = None) -> History:
    """Every metric up to a snapshot; downloads nothing else of it.

    Raises:
        Corrupt, FutureFormat, LimitExceeded: something is not what was committed; names the key.
        StoreError: it cannot be read now.
    """
    part = read_part(store, manifest, deadline=deadline)
    try:
        tree = part.tree["run"]["metrics"]
        rows: list[int] = []
        decode(tree, array=lambda row: rows.append(row) or _nothing(part.tensors[row].shape))  # type: ignore[func-returns-value]
        bodies = read_tensors(store, part, rows, deadline=deadline)
        history = History()
        history.load(decode(tree, array=lambda row: _array(bodies[row], part.tensors[row].dtype)))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise Corrupt(f"{manifest.parts[0].key} has no metric history: {error!r}", hint=OLDER) from error
    return history


def _nothing(shape: tuple[int, ...]) -> Any:
    import numpy

    return numpy.empty(shape, numpy.int8)


def _array(data: bytearray, dtype: str) -> Any:
    import numpy

    return numpy.frombuffer(data, {"I64": "<i8", "F64": "<f8"}[dtype])
