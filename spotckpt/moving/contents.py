"""What a checkpoint holds, whatever file it came in: the common ground of all formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from spotckpt.errors import UsageError
from spotckpt.moving.formats import OWN_KEYS
from spotckpt.moving.histories import Columns
from spotckpt.training.capture import Capture
from spotckpt.training.tensors import Storable, bytes_of

FORMAT = 1
"""Of the `spotckpt` entry in files that this version writes."""
MARK = OWN_KEYS[-1]


@dataclass
class Contents:
    """A checkpoint.

    Attributes:
        objects: the state of each object by name, as `state_dict()` gave it.
        kinds: how each was tracked: `module`, `optimizer`, `stateful`, ...
        run: the run's own state, as `Run.capture` names it, without `vars` and `metrics`; empty in one object alone.
        vars: values of the user's own.
        history: the metrics.
        step: boundaries counted. epoch: the epoch it was taken in, -1 outside epochs.
        arguments, environment: of the run, JSON values.
        evaluated: metrics measured on exactly these weights.
        source: where it came from, for showing.
    """

    objects: dict[str, Any]
    kinds: dict[str, str]
    run: dict[str, Any] = field(default_factory=dict)
    vars: dict[str, Any] = field(default_factory=dict)
    history: Columns = field(default_factory=dict)
    step: int = 0
    epoch: int = -1
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[str, float] = field(default_factory=dict)
    source: str = ""

    @property
    def bare(self) -> Mapping[str, Any] | None:
        """The state of a module or optimizer, where there is nothing else: in a file it stands for itself."""
        if len(self.objects) != 1 or self.run:
            return None
        [(name, state)] = self.objects.items()
        kind = self.kinds[name]
        return state if kind == "optimizer" or (kind == "module" and is_weights(state)) else None

    def check_names(self) -> None:
        """Raises UsageError if an object is named like an entry of ours."""
        for name in self.objects:
            if name in OWN_KEYS:
                raise UsageError(
                    f"object {name!r} has the name of an entry of ours in a file",
                    hint="pull the objects one by one: --only NAME",
                )

    def about(self) -> dict[str, Any]:
        """What stands in the file beside the state, as JSON values."""
        return {
            "format": FORMAT,
            "source": self.source,
            "kinds": self.kinds,
            "arguments": self.arguments,
            "environment": self.environment,
            "evaluated": self.evaluated,
        }


def captured(contents: Contents, *, with_history: bool = True) -> Capture:
    """The state as a part's tree and tensors; the tensors are those of the contents, not copies."""
    found = Capture()
    for name, state in contents.objects.items():
        encoded = found.encode(state, path=name, name=name)
        found.tree["objects"][name] = {"kind": contents.kinds[name], "state": encoded}
    run = {**contents.run, "vars": contents.vars} if contents.run else {}
    for name, value in run.items():
        found.tree["run"][name] = found.encode(value, path=name, name=f"run/{name}")
    if with_history and contents.run:
        found.tree["history"] = found.encode(contents.history, path="history", name="history")
    return found


def as_tensor(value: Storable) -> torch.Tensor:
    """The tensor itself, or a tensor with an array's values, in the array's memory where that may be."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.from_numpy(np.ascontiguousarray(value) if value.flags.writeable else value.copy())


def row_major(value: Storable) -> memoryview:
    """The bytes of a tensor or array in row-major order: its own memory where it lies so, else a copy."""
    value = as_tensor(value).detach().resolve_conj().resolve_neg().contiguous()
    return bytes_of(torch.view_as_real(value) if value.is_complex() else value)


def is_weights(state: object) -> bool:
    """Whether it is what a module's `state_dict()` gives: tensors by name."""
    return (
        isinstance(state, Mapping)
        and bool(state)
        and all(type(key) is str and isinstance(one, torch.Tensor) for key, one in state.items())
    )


def digests(tensors: Iterable[Storable]) -> list[str]:
    """BLAKE3 of the row-major bytes of each."""
    return [blake3(row_major(one)).hexdigest() for one in tensors]


def fingerprint(contents: Contents) -> object:
    """Equal for checkpoints that hold the same: every value, every bit of every tensor."""
    bare = contents.bare
    if bare is not None and is_weights(bare):
        described = [(key, one.dtype, tuple(one.shape)) for key, one in bare.items()]
        return sorted(zip(map(str, described), digests(bare.values()), strict=True))
    found = captured(contents)
    about = {**contents.about(), "source": ""} if bare is None else {}
    return found.tree, found.specs, digests(found.tensors), about
