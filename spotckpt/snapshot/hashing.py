"""BLAKE3 of tensors, from the same read as what else is done with their bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blake3 import blake3


def _nobody(_: int) -> None:
    pass


class Hashing:
    """Digests of ranges of an object, from its bytes as they pass by on their way to the store.

    The pieces come in order; a try that is repeated begins before what was had, and that is skipped.

    Args:
        spans: (offset, length) of each, in order, none of them empty.
        hashed: told how many bytes went through.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], hashed: Callable[[int], None] = _nobody) -> None:
        self._spans = spans
        self._hashed = hashed
        self._reached = 0
        self._found: list[str] = []
        self._hasher = blake3()

    def __call__(self, offset: int, piece: memoryview) -> None:
        """A `Reading`."""
        assert offset <= self._reached, "the store left a piece out"
        end = offset + len(piece)
        if end <= self._reached:
            return
        while len(self._found) < len(self._spans) and self._spans[len(self._found)][0] < end:
            start, length = self._spans[len(self._found)]
            some = piece[max(start, self._reached) - offset : start + length - offset]
            self._hasher.update(some)
            self._hashed(len(some))
            if start + length > end:
                break
            self._found.append(self._hasher.hexdigest())
            self._hasher = blake3()
        self._reached = end

    def digests(self) -> Sequence[str]:
        """Of each range, once all is sent."""
        assert len(self._found) == len(self._spans), "the store did not tell what it sent"
        return self._found
