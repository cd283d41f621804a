"""pytorchcheckpoint's interface (release 0.0.5), for programs that use it.

    from spotckpt.adapters.pytorchcheckpoint import CheckpointHandler

gives the same results with three differences: a file is a plain dictionary instead of a pickled object, so that loading
it executes nothing; it is written whole or not at all, to local paths and to S3 URIs alike; and scheduler and random
generators come along. Files of the old package are read, too.
"""

from __future__ import annotations

import io
import os
import secrets
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from spotckpt.errors import AddressError, UsageError
from spotckpt.moving import torch_file
from spotckpt.moving.atomic import made
from spotckpt.moving.contents import FORMAT, MARK
from spotckpt.moving.document import HANDLER, handler_values
from spotckpt.moving.files import save
from spotckpt.moving.plain import to_plain
from spotckpt.store.base import Store
from spotckpt.store.open import open_store
from spotckpt.training.rng import capture_rng, restore_rng
from spotckpt.training.say import say

_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


class CheckpointHandler:
    """Values by name, and files of them. Each value is an attribute, so names are those that Python allows."""

    def __init__(self) -> None:
        self.prefix_name = "checkpoint"

    def store_var(self, var_name: str, value: Any, exist_fail: bool = False) -> None:
        """Keeps a value; with `exist_fail` a name that is taken raises."""
        if exist_fail is True and hasattr(self, var_name):
            raise UsageError(f"var_name='{var_name}' already exists")
        setattr(self, var_name, value)

    def get_var(self, var_name: str) -> Any:
        """The value of that name, False if there is none."""
        return getattr(self, var_name, False)

    def store_running_var(self, var_name: str, iteration: int, value: Any) -> None:
        """Keeps the value of an iteration or epoch."""
        self._of(var_name)[iteration] = value

    def get_running_var(self, var_name: str, iteration: int) -> Any:
        """That value, False if there is none."""
        return _found(getattr(self, var_name, {}), iteration)

    def store_running_var_with_header(self, header: str, var_name: str, iteration: int, value: Any) -> None:
        """Keeps the value of an iteration or epoch of a set, such as `train`."""
        self._of(header).setdefault(var_name, {})[iteration] = value

    def get_running_var_with_header(self, header: str, var_name: str, iteration: int) -> Any:
        """That value, False if there is none."""
        return _found(getattr(self, header, {}).get(var_name, {}), iteration)

    def generate_checkpoint_path(self, path2save: str) -> str:
        """A file name in that directory, or below that URI, with the time; no two are the same."""
        moment = f"{datetime.now():D%d_%m_%Y_T%H_%M_%S}_{secrets.token_hex(4)}"
        return os.path.join(path2save, f"{self.prefix_name}_{moment}.pth.tar")  # noqa: PTH118  it may be a URI

    def save_checkpoint(
        self,
        checkpoint_path: str | os.PathLike[str],
        iteration: int,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
    ) -> None:
        """Writes the states and all values to a local path or a URI, whole or not at all.

        Raises:
            EncodeError: a value that cannot be loaded again without executing a pickle, by its name.
            SpotckptError: it could not be written; what was there before is there still.
        """
        while isinstance(model, _WRAPPERS):
            model = model.module
        self.model_state_dict = model.state_dict()
        for name, owner in (("optimizer_state_dict", optimizer), ("scheduler_state_dict", scheduler)):
            if owner is not None:
                setattr(self, name, owner.state_dict())
            else:
                vars(self).pop(name, None)  # one of an earlier call does not belong to these weights
        self.iteration = iteration
        self.rng_state = capture_rng()
        _write(self._document(), checkpoint_path)

    def restore(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None, scheduler: Any = None
    ) -> None:
        """Puts a loaded checkpoint into the objects, and the random generators where they were."""
        while isinstance(model, _WRAPPERS):
            model = model.module
        model.load_state_dict(self.model_state_dict)
        for name, owner in (("optimizer_state_dict", optimizer), ("scheduler_state_dict", scheduler)):
            if owner is not None:
                if not hasattr(self, name):
                    raise UsageError(f"the checkpoint holds no {name}", hint="it was saved without it: leave it out")
                owner.load_state_dict(getattr(self, name))
        if hasattr(self, "rng_state"):  # not in files of the old package
            restore_rng(self.rng_state, say)

    @staticmethod
    def load_checkpoint(checkpoint_path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
        """The handler that was saved; of another file of `torch.save` what it holds. No pickle is executed.

        Raises:
            UsageError: it needs classes that only a pickle can make; they are named.
            Corrupt: it is cut short or damaged.
        """
        loaded = torch_file.read(_source(checkpoint_path), name=checkpoint_path, map_location=map_location)
        if isinstance(loaded, torch_file.OldHandler):
            return _handler(vars(loaded))
        about = loaded.get(MARK) if isinstance(loaded, dict) else None
        if not isinstance(about, dict) or about.get("kind") != HANDLER:
            return loaded
        torch_file.check_format(about, checkpoint_path, FORMAT)
        return _handler(handler_values(loaded))

    def _of(self, name: str) -> dict[Any, Any]:
        """The dictionary of that name, made if there is none."""
        if not hasattr(self, name):
            setattr(self, name, {})
        found: dict[Any, Any] = getattr(self, name)
        return found

    def _document(self) -> dict[str, Any]:
        mark = {"format": FORMAT, "kind": HANDLER}
        return {MARK: mark, **{name: to_plain(value, name) for name, value in vars(self).items()}}


def _found(values: Any, iteration: int) -> Any:
    value = values.get(iteration)
    return False if value is None else value


def _handler(values: dict[str, Any]) -> CheckpointHandler:
    handler = CheckpointHandler()
    vars(handler).update(values)
    return handler


def _write(document: dict[str, Any], path: str | os.PathLike[str]) -> None:
    if "://" not in str(path):
        with made(Path(path)) as temporary:
            save(document, temporary)
        return
    file = io.BytesIO()
    torch.save(document, file)
    store, key = _placed(str(path))
    with closing(store):
        store.put(key, [file.getbuffer()])


def _source(path: str | os.PathLike[str]) -> Path | bytearray:
    if "://" not in str(path):
        return Path(path)
    store, key = _placed(str(path))
    with closing(store):
        stat = store.stat(key)
        data = bytearray(stat.size_bytes)
        store.read_into(key, [(0, [memoryview(data)])], etag=stat.etag)
    return data


def _placed(uri: str) -> tuple[Store, str]:
    root, _, key = uri.rpartition("/")
    if not key or root.endswith(("/", ":")):
        raise AddressError(f"{uri} names no object", hint="as in s3://bucket/folder/checkpoint.pth.tar")
    return open_store(root), key
