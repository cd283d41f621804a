"""Ten million points on a thousand pixels: which of them are drawn, so that the picture is the same as with all."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


def thin(x: NDArray[Any], y: Floats, columns: int) -> Ints:
    """The places of the points that show: in each of so many columns the first, the last, the lowest, the highest,
    the first that is NaN (a gap stays a gap), and the first of each infinity.

    Args:
        x: number[n], growing.
        y: float64[n].
        columns: of equal width over the range of x.

    Returns:
        int64[m], growing; all n places if there are no more than four for each column.
    """
    if len(x) <= 4 * columns:
        return np.arange(len(x))
    edges = np.linspace(float(x[0]), float(x[-1]), columns + 1)
    cuts = np.unique(np.concatenate(([0], np.searchsorted(x, edges[1:-1], side="left"), [len(x)])))
    kept = [place + first for first, last in pairwise(cuts) for place in _showing(y[first:last])]
    return np.unique(np.array(kept, dtype=np.int64))


def _showing(y: Floats) -> list[int]:
    finite = np.isfinite(y)
    places = [0, len(y) - 1]
    if finite.all():
        return [*places, int(y.argmin()), int(y.argmax())]
    if finite.any():
        places += [int(np.where(finite, y, np.inf).argmin()), int(np.where(finite, y, -np.inf).argmax())]
    for odd in (np.isnan(y), y == np.inf, y == -np.inf):
        if odd.any():
            places.append(int(odd.argmax()))
    return places


def smooth(x: NDArray[Any], y: Floats, width: float) -> Floats:
    """The mean of the values of the last `width` units of x, at the start of as many as there are.

    What is not finite is left out; where the value itself is not finite, the mean is NaN.

    Args:
        x: number[n], growing.
        y: float64[n].
        width: more than 0.
    """
    finite = np.isfinite(y)
    known = np.where(finite, y, 0.0)
    middle = known.sum() / max(1, finite.sum())  # sums of what is left over lose no digits
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, known - middle, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    first = np.searchsorted(x, x - width, side="right")
    total, count = sums[1:] - sums[first], counts[1:] - counts[first]
    return np.where(finite, middle + total / np.maximum(1, count), np.nan)
