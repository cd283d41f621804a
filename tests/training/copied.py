"""The whole of a capture in one go, as a training that stands still copies it."""

from __future__ import annotations

from typing import Any

from spotckpt.snapshot.pack import Layout
from spotckpt.training.capture import Capture
from spotckpt.training.copying import Copy
from spotckpt.training.pinned import PinnedBuffers


def copy_into(captured: Capture, buffer: Any, layout: Layout) -> None:
    """Writes every tensor to its place in the data section; returns when all bytes are there."""
    copy = Copy(captured, buffer, layout, PinnedBuffers())
    copy.run(copy.rows())
