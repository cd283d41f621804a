"""Reading back what a test has written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spotckpt.store.base import Store


def read_ranges(store: Store, key: str, ranges: Sequence[tuple[int, int]], **options: Any) -> list[bytes]:
    """The bytes of each (offset, length)."""
    buffers = [bytearray(length) for _, length in ranges]
    spans = [(offset, [memoryview(buffer)]) for (offset, _), buffer in zip(ranges, buffers, strict=True)]
    store.read_into(key, spans, **options)
    return [bytes(buffer) for buffer in buffers]
