"""What a training leaves behind, written so that two of them can be compared byte for byte.

A dump is two files: `PATH.safetensors` with every tensor and `PATH.json` with everything else; floats are written in
hexadecimal, so no digit is rounded. Nothing here imports spotckpt.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

FORMATS = ("curves", "values", "objects", "rng")
"""In this order differences are reported: the loss curve tells at which batch it went wrong."""


@dataclass
class Outcome:
    """The end of a training.

    Attributes:
        objects: everything with a `state_dict`, a generator, or a list of tensors.
        curves: the metric history, `set/name` to values.
        values: counters and whatever else the loop carried along.
    """

    objects: dict[str, Any]
    curves: dict[str, list[float]]
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Dump:
    """An outcome read back: both are flat, name to content."""

    tensors: dict[str, tuple[str, tuple[int, ...], bytes]]
    scalars: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Dump:
        """Reads what `write` wrote."""
        with safe_open(path.with_suffix(".safetensors"), "pt") as file:
            tensors = {name: _content(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        return cls(tensors, json.loads(path.with_suffix(".json").read_text()))


def write(outcome: Outcome, path: Path) -> None:
    """Dumps the outcome and the state of every global generator."""
    everything = {
        "curves": outcome.curves,
        "values": outcome.values,
        "objects": {name: _state(value) for name, value in outcome.objects.items()},
        "rng": {"python": _state(random), "numpy": _state(np.random), "torch": torch.get_rng_state()},
    }
    flat = dict(_flatten(everything, ""))
    tensors = {name: value.detach().clone().contiguous() for name, value in flat.items() if torch.is_tensor(value)}
    scalars = {name: _text(value) for name, value in flat.items() if not torch.is_tensor(value)}
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(scalars, indent=0))


def differences(plain: Dump, spot: Dump) -> list[str]:
    """One line for each thing that is not the same in both, the most telling first; empty if all is equal."""
    lines = [
        _difference(name, kind, mine.get(name), yours.get(name))
        for kind, mine, yours in (("scalar", plain.scalars, spot.scalars), ("tensor", plain.tensors, spot.tensors))
        for name in [*mine, *(other for other in yours if other not in mine)]
        if mine.get(name) != yours.get(name)
    ]
    return sorted(lines, key=lambda line: FORMATS.index(line.partition("/")[0]))


def _difference(name: str, kind: str, mine: Any, yours: Any) -> str:
    if mine is None or yours is None:
        return f"{name}: only in the {'spot' if mine is None else 'plain'} training"
    if kind == "scalar":
        return f"{name}: plain {mine}, spot {yours}"
    if mine[:2] != yours[:2]:
        return f"{name}: plain {mine[:2]}, spot {yours[:2]}"
    first = next(i for i, (a, b) in enumerate(zip(mine[2], yours[2], strict=True)) if a != b)
    count = sum(a != b for a, b in zip(mine[2], yours[2], strict=True))
    return f"{name}: {count} of {len(mine[2])} bytes differ, the first at {first}"


def _content(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return str(tensor.dtype), tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _state(value: Any) -> Any:
    if hasattr(value, "state_dict"):
        return value.state_dict()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if value is np.random:
        return [torch.from_numpy(x.astype(np.int64)) if isinstance(x, np.ndarray) else x for x in value.get_state()]
    if value is random or isinstance(value, random.Random):
        version, numbers, gauss = value.getstate()
        return [version, torch.tensor(numbers, dtype=torch.int64), gauss]
    return value


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield f"{path}/#keys".lstrip("/"), repr(list(value))
        items = list(value.items())
    elif isinstance(value, list | tuple):
        yield f"{path}/#length", f"{type(value).__name__} of {len(value)}"
        items = list(enumerate(value))
    else:
        yield path, value
        return
    for key, child in items:
        yield from _flatten(child, f"{path}/{key}".lstrip("/"))


def _text(value: Any) -> str:
    if type(value) is float:
        return f"float {value.hex()}"
    if value is None or type(value) in (bool, int, str):
        return f"{type(value).__name__} {value!r}"
    raise TypeError(f"cannot compare a {type(value).__name__}: {value!r}")
