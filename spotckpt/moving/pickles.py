"""Looking into a pickle without executing it: which classes it names, and how much memory it would take.

The look comes before any reading. A pickle is run through a machine in which every class and function is a dummy that
does nothing, so that all names come to light, even those that only a call would reach, and every size is checked before
something of that size is allocated. What is allowed is this list and nothing else; `torch.load(weights_only=True)`,
which reads the file afterwards, has a list of its own.
"""

from __future__ import annotations

import math
import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NoReturn

from spotckpt.errors import Corrupt, LimitExceeded, UsageError
from spotckpt.snapshot.pack import MAX_DIMENSIONS, MAX_TENSOR_BYTES, MAX_TENSORS

HINT = "it was not written by torch.save, or was damaged on its way: fetch it again"
FORGED = "do not use a file from someone you do not trust"
OLD_HANDLER = "pytorchcheckpoint.checkpoint.CheckpointHandler"

MOST_VIEWS = 16
FEW_BYTES = 64 << 20
"""Tensors may show each byte of a file so many times, and this much more: tied ones do it some times."""

_TORCH = re.compile(
    r"torch\.([A-Z][a-z0-9]+[A-Za-z0-9]*Storage|storage\.(UntypedStorage|TypedStorage)|Size|device"
    r"|(float|bfloat|complex|int|uint)[0-9]+(_[a-z0-9]+)?|bool|nn\.parameter\.Parameter|serialization\._get_layout"
    r"|_utils\._rebuild_(tensor(_v2|_v3)?|parameter))"
)
_NUMPY = re.compile(r"numpy\.((_?core)\.multiarray\.(scalar|_reconstruct)|dtype|ndarray)")
_OTHERS = frozenset(
    {"collections.OrderedDict", "_codecs.encode", "builtins.set", "builtins.bytearray", "builtins.complex", OLD_HANDLER}
)
_DCP = re.compile(
    r"torch\.distributed\.checkpoint\.(metadata\.(Metadata|MetadataIndex|TensorStorageMetadata|BytesStorageMetadata"
    r"|ChunkStorageMetadata|TensorProperties|StorageMeta|_MEM_FORMAT_ENCODING)|filesystem\._StorageInfo)"
    r"|pathlib\.(Pure)?(Posix|Windows)?Path|pathlib\._local\.(Pure)?(Posix|Windows)?Path"
)


def is_harmless(name: str) -> bool:
    """Whether a file of weights may name this class or function."""
    return bool(_TORCH.fullmatch(name) or _NUMPY.fullmatch(name)) or name in _OTHERS


def refused(path: object, names: Sequence[str]) -> UsageError:
    """The error for a file that needs these classes."""
    return UsageError(
        f"{path} needs a pickle to be executed, for {', '.join(sorted(names))}",
        hint="if you trust who wrote it: --trust-pickle",
    )


_ITEM_BYTES = (
    ("ComplexDouble", 16),
    ("ComplexFloat", 8),
    ("BFloat16", 2),
    ("Double", 8),
    ("Float", 4),
    ("Half", 2),
    ("Long", 8),
    ("Int", 4),
    ("Short", 2),
)
"""By what the class of a storage is called; all others are of bytes."""


class Storage:
    """A storage that a file declares."""

    def __init__(self, key: str, kind: str, numel: int) -> None:
        self.key = key
        self.item_bytes = next((size for name, size in _ITEM_BYTES if name in kind), 1)
        self.numel = numel

    @property
    def size_bytes(self) -> int:
        """Of all elements."""
        return self.numel * self.item_bytes


class Look(pickle._Unpickler):  # in Python: the other one allocates what a pickle declares
    """What a pickle holds, all of it dummies.

    Attributes:
        names: of the classes and functions.
        storages: what it declares, by key.
        tensors: how many.
    """

    def __init__(self, file: IO[bytes], path: object) -> None:
        super().__init__(file)
        self.path = path
        self.names: set[str] = set()
        self.storages: dict[str, Storage] = {}
        self.tensors = 0
        self._viewed_bytes = 0

    def value(self) -> Any:
        """Runs it.

        Raises:
            Corrupt: it is no pickle.
            LimitExceeded: it declares more than it may.
        """
        try:
            found = self.load()
            self._check_views()
            return found
        except (LimitExceeded, Corrupt):
            raise
        except Exception as error:
            raise Corrupt(f"{self.path}: a pickle that cannot be read: {error!r:.200}", hint=HINT) from error

    def _check_views(self) -> None:
        stored = sum(one.size_bytes for one in self.storages.values())
        if self._viewed_bytes > MOST_VIEWS * stored + FEW_BYTES:
            raise LimitExceeded(
                f"{self.path}: its tensors make {self._viewed_bytes} bytes of {stored}, each many times", hint=FORGED
            )

    def find_class(self, module_name: str, global_name: str) -> Any:
        """A dummy; the name is noted."""
        if getattr(self, "proto", 0) < 3:
            module_name, global_name = NAME_MAPPING.get(
                (module_name, global_name), (IMPORT_MAPPING.get(module_name, module_name), global_name)
            )
        name = f"{module_name}.{global_name}"
        self.names.add(name)
        return _dummy(name, self)

    def get_extension(self, code: int) -> NoReturn:
        """Registered classes are looked up by number: none of ours is."""
        raise Corrupt(f"{self.path}: a pickle with an extension code", hint=HINT)

    def persistent_load(self, pid: Any) -> Storage:
        """The bytes of a tensor: `("storage", class, key, location, number of elements[, view])`."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise Corrupt(f"{self.path}: something else than a tensor lies outside of the pickle", hint=HINT)
        kind, key, numel = getattr(pid[1], "name", ""), pid[2], pid[4]
        if type(key) is not str or type(numel) is not int or not 0 <= numel <= MAX_TENSOR_BYTES:
            raise LimitExceeded(f"{self.path} declares a tensor of {numel!r:.40} elements", hint=FORGED)
        return self.storages.setdefault(key, Storage(key, kind, numel))

    def called(self, name: str, args: tuple[Any, ...]) -> None:
        """Whether a call may be made later on: a few take any amount of memory.

        Raises:
            LimitExceeded: it may not.
        """
        if name == "_codecs.encode" and args[1:] != ("latin1",):
            raise LimitExceeded(f"{self.path} encodes text as {args[1:]!r:.40}", hint=FORGED)
        if name == "builtins.bytearray" and args and isinstance(args[0], int):
            raise LimitExceeded(f"{self.path} wants {args[0]} bytes made of nothing", hint=FORGED)
        if "._rebuild_tensor" in name:
            self.tensors += 1
            if self.tensors > MAX_TENSORS:
                raise LimitExceeded(f"{self.path} holds more than {MAX_TENSORS} tensors", hint=FORGED)
            self._viewed_bytes += _extent(self.path, args)
        elif _TORCH.fullmatch(name) and not re.search(r"_rebuild_parameter|Size|device|_get_layout", name):
            raise LimitExceeded(f"{self.path} calls {name}", hint=FORGED)  # torch.Tensor(n) allocates n


def _extent(path: object, args: tuple[Any, ...]) -> int:
    """The bytes of a tensor, which must lie inside of its storage: torch would make the storage larger."""
    storage, offset, size, stride = (*args, None, None, None, None)[:4]
    size = getattr(size, "args", [size])[0] if isinstance(size, Dummy) else size  # torch.Size((2, 3))
    sides = [*_counts(size), *_counts(stride), *_counts((offset,))] if isinstance(storage, Storage) else [-1]
    if not sides or min(sides) < 0 or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise Corrupt(f"{path}: a tensor without bytes, or of a shape that is none", hint=HINT)
    last = sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if all(size) and (offset + last + 1) * _item_bytes(args) > storage.size_bytes:
        raise LimitExceeded(f"{path}: a tensor of shape {list(size)[:8]} is larger than its bytes", hint=FORGED)
    viewed: int = math.prod(size) * _item_bytes(args)
    return viewed


def _item_bytes(args: tuple[Any, ...]) -> int:
    """Of the tensor: its storage's, or, where that is of bytes alone, the one of the dtype that is given."""
    item: int = args[0].item_bytes
    dtypes = [getattr(one, "name", "") for one in args[4:]]
    found = [re.search(r"^torch\.[a-z]+?([0-9]+)", name) for name in dtypes]
    return max([item, *(int(match[1]) // 8 for match in found if match)])


def _counts(values: Any) -> list[int]:
    good = isinstance(values, (tuple, list)) and all(type(value) is int for value in values)
    return list(values) if good else [-1]


class Dummy:
    """Stands for any class, function and instance: everything can be done with it, and nothing happens."""

    name = ""
    look: Look

    def __new__(cls, *args: Any, **_: Any) -> Any:
        """Tells of the call."""
        cls.look.called(cls.name, args)
        made = object.__new__(cls)
        made.args = args
        return made

    args: tuple[Any, ...]

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """As of a list."""

    def extend(self, values: Any) -> None:
        """As of a list."""

    def add(self, value: Any) -> None:
        """As of a set."""


def _dummy(name: str, look: Look) -> type[Dummy]:
    return type("Dummy", (Dummy,), {"name": name, "look": look})


class Known(pickle._Unpickler):
    """Reads a pickle that may make instances of these classes and of no others.

    Args:
        file: the pickle.
        classes: by full name.
    """

    def __init__(self, file: IO[bytes], classes: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(file)
        self._classes = classes

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The class of that name."""
        name = f"{module_name}.{global_name}"
        if name not in self._classes:
            raise UsageError(f"a table that wants {name}, which does not belong there", hint=FORGED)
        return self._classes[name]

    def get_extension(self, code: int) -> NoReturn:
        """None is known."""
        raise Corrupt("a pickle with an extension code", hint=FORGED)
