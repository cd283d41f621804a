"""Which format a file has: by what is asked for, else by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from spotckpt.errors import UsageError

OWN_KEYS = ("vars", "history", "step", "epoch", "spotckpt")
"""What the dictionary in a .pt file holds beside the tracked objects."""

Format = Literal["pt", "safetensors", "dcp"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIXES: dict[str, Format] = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".tar"), "pt"),
    ".safetensors": "safetensors",
    ".dcp": "dcp",
}


def format_of(path: Path, asked: str | None) -> Format:
    """The format of a file that is there, or is to be written.

    Raises:
        UsageError: neither the name nor anybody says.
    """
    found = next((one for one in FORMATS if one == asked), None)
    if found is None and path.is_dir():
        found = "dcp"
    found = found or _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise UsageError(
            f"{path}: its name does not say which format it has",
            hint=f"name it {path.stem}.pt, .safetensors or .dcp, or give --format",
        )
    return found
