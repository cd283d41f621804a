"""A checkpoint as named tensors and one text that says how they belong together: for formats that hold tensors only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from spotckpt.errors import Corrupt
from spotckpt.moving.contents import FORMAT, Contents
from spotckpt.moving.histories import checked
from spotckpt.moving.torch_file import check_format
from spotckpt.snapshot.part import TensorEntry
from spotckpt.snapshot.tree import decode
from spotckpt.training.capture import Capture
from spotckpt.training.leaves import decode_leaf
from spotckpt.training.tensors import DTYPES, empty_tensor

MAX_TEXT_BYTES = 100_000_000
_CHANGED = "it was changed by another program; without its spotckpt metadata it is pushed as plain tensors"


def describe(contents: Contents, found: Capture, names: Sequence[str]) -> str:
    """The text.

    Args:
        contents: the checkpoint.
        found: it, captured.
        names: of its tensors in the file.
    """
    place = {"step": contents.step, "epoch": contents.epoch}
    tensors = [(name, spec.dtype, spec.stride) for name, spec in zip(names, found.specs, strict=True)]
    return json.dumps({**contents.about(), **place, "tensors": tensors, "tree": found.tree}, allow_nan=False)


def described(text: object, tensor: Callable[[str], torch.Tensor], *, file: object) -> Contents:
    """The checkpoint.

    Args:
        text: what `describe` gave.
        tensor: the tensor of that name; raises KeyError if there is none.
        file: what errors call it.

    Raises:
        FutureFormat: a newer version wrote it.
        Corrupt: text and tensors do not fit each other.
    """
    try:
        if not isinstance(text, str) or len(text) > MAX_TEXT_BYTES:
            raise ValueError("there is no description")
        about = json.loads(text)
        check_format(about, file, FORMAT)
        tensors = [_as_captured(tensor(name), dtype, stride) for name, dtype, stride in about["tensors"]]
        tree = decode(
            about["tree"],
            leaf=lambda node: decode_leaf(node, lambda row, _: tensors[row]),
            array=lambda row: tensors[row].numpy(),
        )
        return _contents(about, tree, file)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise Corrupt(f"{file}: its description does not fit: {error!r:.200}", hint=_CHANGED) from error


def _as_captured(value: torch.Tensor, dtype: str, stride: list[int] | None) -> torch.Tensor:
    """As it lay in memory; what the format lacks comes back, too."""
    if dtype == "C128" and value.dtype == torch.float64:
        value = torch.view_as_complex(value)
    if DTYPES[dtype] != value.dtype:
        raise ValueError(f"a tensor is {value.dtype}, not {dtype}")
    if stride is None:
        return value
    spec = TensorEntry("", dtype, tuple(value.shape), tuple(stride), ())
    return empty_tensor(spec, torch.device("cpu")).copy_(value)


def _contents(about: Mapping[str, Any], tree: Mapping[str, Any], file: object) -> Contents:
    run = dict(tree["run"])
    values = run.pop("vars", {})
    return Contents(
        objects={name: one["state"] for name, one in tree["objects"].items()},
        kinds={name: str(one["kind"]) for name, one in tree["objects"].items()},
        run=run,
        vars=dict(values),
        history=checked(tree.get("history", {}), file),
        step=int(about["step"]),
        epoch=int(about["epoch"]),
        arguments=dict(about["arguments"]),
        environment=dict(about["environment"]),
        evaluated={name: float(value) for name, value in about["evaluated"].items()},
        source=str(about["source"]),
    )
