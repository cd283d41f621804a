"""What a train function sees and nobody tracks: the values in its frame, in those that called it, and in its module.

A value that is carried from step to step there, such as a moving average of the weights or a sum of losses, is lost
when the process ends. The probe of a drill digests these values so that one that does not come back can be named.
"""

from __future__ import annotations

import sys
import sysconfig
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from spotckpt.training.digests import SIMPLE, digest, tensor_digest
from spotckpt.training.rng import GENERATOR_TYPES

_NOT_THE_USERS = {*sys.stdlib_module_names, "spotckpt", "torch", "numpy"} - {"__main__"}
_NOT_WALKED = {"spotckpt", "logging", "threading", "argparse", "builtins"}
_OURS_LIKE_A_USERS = "spotckpt.demo"
_OPAQUE = (ModuleType, FunctionType, MethodType, type, DataLoader, Dataset, Sampler)
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_MAX_DEPTH = 5
_MAX_ITEMS = 64
_MAX_LEAVES = 20_000
_MAX_TEXT = 60

Leaf = list[Any]
"""[kind, digest, text, variable, its type, function]; the kind is tensor, number, list or generator. The variable is
the name or attribute that holds it: `ema` or `self.ema` of `self.ema.0.weight`."""


class Around:
    """Collects the leaves of one moment.

    Args:
        known: ids of objects that are tracked, or are spotckpt's own.
        tensors: addresses of tensors that are tracked.
    """

    def __init__(self, known: Collection[int], tensors: Collection[int]) -> None:
        self._seen = set(known)
        self._tensors = tensors
        self._owner = ("", "")
        self._where = ""
        self.leaves: dict[str, Leaf] = {}

    def look(self) -> dict[str, Leaf]:
        """By path, as in `ema.0.weight` or `self.total`, the innermost frame first."""
        for where, names in _scopes(sys._getframe()):
            for name, value in names.items():
                self._where = where
                self._walk(value, name if name not in self.leaves else f"{where}.{name}", 0, owns=True)
        return self.leaves

    def _add(self, path: str, kind: str, value_digest: str, text: str) -> None:
        if len(self.leaves) < _MAX_LEAVES:
            self.leaves.setdefault(path, [kind, value_digest, text[:_MAX_TEXT], *self._owner, self._where])

    def _walk(self, value: Any, path: str, depth: int, *, owns: bool = False) -> None:
        if owns:
            self._owner = (path.removeprefix(f"{self._where}."), type(value).__name__)
        if isinstance(value, SIMPLE):
            self._add(path, "number", repr(value) if not isinstance(value, str | bytes) else digest(value), repr(value))
        elif id(value) in self._seen or depth > _MAX_DEPTH or isinstance(value, _OPAQUE):
            return
        elif isinstance(value, torch.Tensor):
            self._add_tensor(path, value)
        elif isinstance(value, np.ndarray):
            self._add(path, "tensor", digest(value), f"an array of {list(value.shape)}")
        elif isinstance(value, GENERATOR_TYPES):
            self._add(path, "generator", digest(value), "")
        else:
            self._seen.add(id(value))
            self._walk_parts(value, path, depth + 1)

    def _add_tensor(self, path: str, tensor: torch.Tensor) -> None:
        if tensor.numel() and tensor.data_ptr() not in self._tensors:
            self._add(path, "tensor", tensor_digest(tensor, sampled=True), f"a tensor of {list(tensor.shape)}")

    def _walk_parts(self, value: Any, path: str, depth: int) -> None:
        if isinstance(value, torch.nn.Module):
            self._walk_module(value, path, depth)
        elif isinstance(value, list | tuple | set | frozenset | deque):
            self._walk_items(value, path, depth)
        elif isinstance(value, Mapping):
            for number, (key, part) in enumerate(list(value.items())[:_MAX_ITEMS]):
                self._walk(part, f"{path}[{key!r}]" if isinstance(key, SIMPLE) else f"{path}[{number}]", depth)
        elif type(value).__module__.partition(".")[0] not in _NOT_WALKED:
            is_users = _is_users(type(value))
            is_own = is_users and not type(value).__module__.startswith("torch")
            for name, part in list(getattr(value, "__dict__", {}).items()):
                if is_users or not isinstance(part, SIMPLE):
                    self._walk(part, f"{path}.{name}", depth, owns=is_own)

    def _walk_items(self, value: Any, path: str, depth: int) -> None:
        if all(isinstance(part, SIMPLE) for part in value):
            self._add(path, "list", digest(list(value) if isinstance(value, deque) else value), f"{len(value)} values")
        elif isinstance(value, list | tuple | deque):
            for number, part in enumerate(list(value)[:_MAX_ITEMS]):
                self._walk(part, f"{path}[{number}]", depth)

    def _walk_module(self, module: torch.nn.Module, path: str, depth: int) -> None:
        """Tensors, also those that are not in the state_dict, and what its parts count in attributes of their own."""
        for name, part in module.named_modules():
            self._seen.add(id(part))
            at = f"{path}.{name}" if name else path
            for own, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is not None:
                    self._add_tensor(f"{at}.{own}", tensor)
            for own, attribute in vars(part).items():
                if not own.startswith("_") and own != "training":
                    self._walk(attribute, f"{at}.{own}", depth)


def _is_users(kind: type) -> bool:
    """Whether numbers in it may be the training's: not those of a progress bar or another installed package."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return kind.__module__.startswith("torch.optim") or not is_installed(file)


def is_installed(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    return file.startswith(_INSTALLED)


def _scopes(frame: FrameType | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The user's scopes, with their names: functions from the inside out, then the modules that they are of.

    The innermost may be of an installed package, as a training may be; those further out then only started it.
    """
    modules: dict[int, tuple[str, dict[str, Any]]] = {}
    while frame is not None:
        name, path = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        is_users = name.partition(".")[0] not in _NOT_THE_USERS and not (modules and is_installed(path))
        if is_users or name.startswith(_OURS_LIKE_A_USERS):
            file = Path(path).name
            modules.setdefault(id(frame.f_globals), (file, frame.f_globals))
            if frame.f_locals is not frame.f_globals:
                yield f"{frame.f_code.co_name}() in {file}", dict(frame.f_locals)
        frame = frame.f_back
    for file, names in modules.values():
        yield file, {name: value for name, value in names.items() if not name.startswith("__")}
