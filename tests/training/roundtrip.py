"""A capture that went through bytes and back, as it does through a snapshot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spotckpt.snapshot.pack import layout
from spotckpt.snapshot.staged import table
from spotckpt.training.capture import capture
from spotckpt.training.copying import copy_into
from spotckpt.training.restore import TensorSource, decode_value, tensor_indices


def through_bytes(
    objects: Mapping[str, object], extra: Mapping[str, object] | None = None
) -> tuple[dict[str, Any], TensorSource]:
    """The tree and the tensors as a restore gets them."""
    captured = capture(objects, extra or {})
    plan = layout(captured.specs)
    data = bytearray(plan.data_bytes)
    copy_into(captured, memoryview(data), plan)
    entries = table(captured.specs, plan)
    tree = json.loads(json.dumps(captured.tree, allow_nan=False))
    buffers = {
        index: bytearray(data[entry.chunks[0].offset : entry.chunks[0].offset + entry.chunks[0].length])
        for index, entry in enumerate(entries)
        if index in tensor_indices(tree)
    }
    return tree, TensorSource(entries, buffers)


def value_through_bytes(value: object) -> Any:
    """One value, decoded."""
    tree, source = through_bytes({}, {"value": value})
    return decode_value(tree["run"]["value"], source)
