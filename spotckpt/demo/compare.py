"""Compares how two trainings ended, byte for byte. No torch: the states are plain arrays in an `.npz` file."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spotckpt.errors import Corrupt

Arrays = Mapping[str, npt.NDArray[Any]]

GROUPS = {
    "model": "tensors of the model",
    "optimizer": "tensors and numbers of the optimizer",
    "scheduler": "numbers of the scheduler",
    "rng": "RNG states",
    "curve": "points of the loss curves",
}


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        difference: the first difference, in words; empty when both are the same.
        counts: how many things of each group are equal; of curves the points count.
        compared_bytes: how many bytes were compared in all.
    """

    difference: str
    counts: Mapping[str, int]
    compared_bytes: int


def read_state(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an `.npz` file.

    Raises:
        Corrupt: it is missing, is no such file, or holds a pickle.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Corrupt(f"end state {path} cannot be read: {error}", hint="look at the trainer's log") from error


def compare(plain: Arrays, resumed: Arrays) -> Verdict:
    """Compares names, dtypes, shapes and bytes; NaNs are equal when their bits are, 0.0 and -0.0 are not."""
    counts: Counter[str] = Counter()
    compared_bytes = 0
    for name in sorted({*plain, *resumed}):
        difference = _difference(name, plain.get(name), resumed.get(name))
        if difference:
            return Verdict(difference, counts, compared_bytes)
        group = name.partition("/")[0]
        counts[group] += plain[name].size if group == "curve" else 1
        compared_bytes += plain[name].nbytes
    missing = [group for group in GROUPS if not counts[group]]
    return Verdict(f"neither run has any {GROUPS[missing[0]]}" if missing else "", counts, compared_bytes)


def _difference(name: str, plain: npt.NDArray[Any] | None, resumed: npt.NDArray[Any] | None) -> str:
    if plain is None or resumed is None:
        return f"{name} is only in the {'resumed' if plain is None else 'plain'} run"
    if plain.dtype != resumed.dtype or plain.shape != resumed.shape:
        kinds = [f"{array.dtype}{list(array.shape)}" for array in (plain, resumed)]
        return f"{name} is {kinds[0]} in the plain run, {kinds[1]} in the resumed one"
    unequal = np.flatnonzero(_bytes(plain) != _bytes(resumed))
    if not unequal.size:
        return ""
    place = int(unequal[0]) // plain.itemsize
    index = [int(part) for part in np.unravel_index(place, plain.shape)]
    values = plain.reshape(-1)[place].item(), resumed.reshape(-1)[place].item()
    return f"{name}{index or ''} is {values[0]!r} in the plain run, {values[1]!r} in the resumed one"


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
