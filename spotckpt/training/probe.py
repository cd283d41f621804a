"""The probe of a drill: what a trainer was like at each boundary, written down, so that two trainings can be compared.

Off unless the environment names a folder (`witness.PROBE_VARIABLE`). It reads and changes nothing: no number of the
training depends on it. At steps that the drill plans it asks for a snapshot, or waits until the drill has done its
part.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from spotckpt.training.around import Around, is_installed
from spotckpt.training.capture import Capture
from spotckpt.training.digests import digest, magnitude, tensor_digest
from spotckpt.training.witness import PROBE_VARIABLE, RECORDS_NAME, At, Delta, Plan, Record, go_path, held_path

_LOOK_S = 0.005
_REST_S = 0.1
_OWN_LEFT_OUT = ("position", "metrics", "history", "gradients", "step", "at")
_NOT_DATA = (".py", ".pyc", ".so", ".pth", ".json.lock")


class Observed(Protocol):
    """What a probe reads of a run."""

    resumed_from: str | None

    @property
    def history(self) -> Mapping[str, Mapping[str, Any]]:
        """Every metric so far."""

    @property
    def vars(self) -> object:
        """The user's values."""

    @property
    def step(self) -> int:
        """Boundaries passed."""

    @property
    def epoch(self) -> int:
        """The epoch."""

    @property
    def tracked(self) -> Mapping[str, object]:
        """What is tracked, by name."""

    @property
    def generators(self) -> Mapping[str, Any]:
        """The states of all generators that are known."""

    def capture(self) -> Capture:
        """The whole state, uncopied."""

    def save(self) -> None:
        """Asks for a snapshot."""


def probe_of_environment() -> Probe | None:
    """The probe that a drill asks for, or None."""
    folder = os.environ.get(PROBE_VARIABLE)
    return Probe(Path(folder)) if folder else None


class Probe:
    """Of one process, for the first run that it opens.

    Args:
        folder: of this life; see `witness`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plan = Plan.read(folder)
        self._out = os.open(folder / RECORDS_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._delta = Delta()
        self._batch: dict[str, str] = {}
        self._metrics: dict[str, str] = {}
        self._begun = self._over = False
        self._watch_files()

    def opened(self, run: Observed) -> None:
        """The run is open, nothing of it is restored; the generators are as the program seeded them."""
        self._write({"resumed_from": run.resumed_from})
        self._record(Record("open", run.step, generators=_generators(run.generators)))

    def body(self, run: Observed, item: object, *, is_batch: bool) -> None:
        """A loop gives an item out."""
        if not self._begun:
            self._begun = True
            self._record(self._state(run, "start"))
        if is_batch:
            self._batch = {"batch": digest(item)}

    def logged(self, set_name: str, values: Mapping[str, object]) -> None:
        """Metrics of this step."""
        self._metrics |= {f"{set_name}/{name}": _text(value) for name, value in values.items()}

    def point(self, run: Observed, at: At) -> None:
        """A boundary, before anything is saved there."""
        self._begun = True
        self._record(self._state(run, at))
        if at == "step" and run.step in self._plan.saves:
            run.save()
        if at == "step" and run.step in self._plan.holds:
            self._hold(run.step)
        if self._plan.slow_from is not None and run.step >= self._plan.slow_from:
            time.sleep(_REST_S)

    def ended(self, run: Observed) -> None:
        """The run is over; its whole history stands for the metrics."""
        series = {
            f"{set_name}/{name}": digest([list(curve.steps), list(curve)])
            for set_name, curves in run.history.items()
            for name, curve in curves.items()
        }
        self._metrics = series
        self._record(self._state(run, "end"))
        self._over = True

    def _state(self, run: Observed, at: At) -> Record:
        captured = run.capture()
        around = Around(_known(run), {_address(one) for one in captured.tensors})
        record = Record(
            at,
            run.step,
            run.epoch,
            generators=_generators(run.generators),
            batch=self._batch,
            tensors=_tensors(captured),
            values=dict(_values(captured)),
            metrics=self._metrics,
            locals=around.look(),
        )
        self._batch, self._metrics = {}, {}
        return record

    def _hold(self, step: int) -> None:
        held_path(self._folder, step).touch()
        go = go_path(self._folder, step)
        while not go.exists() and self._folder.exists():  # without the folder there is no drill any more
            time.sleep(_LOOK_S)

    def _record(self, record: Record) -> None:
        self._write(self._delta.to_line(record))

    def _write(self, line: Mapping[str, Any]) -> None:
        os.write(self._out, json.dumps(line).encode() + b"\n")

    def _watch_files(self) -> None:
        """Notes size and time of each file that is opened for reading: data that changes between two lives shows."""
        seen: set[str] = set()
        own = (os.environ.get(name, "") for name in ("SPOTCKPT_SPOOL", "SPOTCKPT_RUNTIME_DIR", "SPOTCKPT_URI"))
        places = ("/proc", "/sys", "/dev", *own, str(self._folder))
        beneath = {os.path.realpath(place.removeprefix("file://")) for place in places if place}
        out = self._out

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event != "open" or self._over or not isinstance(arguments[0], str) or arguments[0] in seen:
                return
            seen.add(arguments[0])
            line = _file_line(arguments[0], arguments[1], beneath)
            if line:
                os.write(out, line)

        sys.addaudithook(hook)


def _file_line(name: str, mode: object, beneath: set[str]) -> bytes:
    if (isinstance(mode, str) and set(mode) & set("wax+")) or name.endswith(_NOT_DATA):
        return b""
    try:
        path, found = os.path.realpath(name), Path(name).stat()
    except OSError:
        return b""
    if is_installed(path) or not stat.S_ISREG(found.st_mode) or any(path.startswith(place) for place in beneath):
        return b""
    return json.dumps({"file": path, "stat": [found.st_size, found.st_mtime_ns]}).encode() + b"\n"


def _known(run: Observed) -> set[int]:
    return {id(run), id(run.vars), *map(id, run.tracked.values())}


def _address(value: Any) -> int:
    return int(value.data_ptr()) if hasattr(value, "data_ptr") else int(value.ctypes.data)


def _tensors(captured: Capture) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, value in zip(captured.names, captured.tensors, strict=True):
        if not name.startswith(tuple(f"run/{own}" for own in _OWN_LEFT_OUT)):
            is_array = not hasattr(value, "data_ptr")
            own = digest(value) if is_array else tensor_digest(value)  # type: ignore[arg-type]
            found[name] = [own, magnitude(value), list(value.shape)]
    return found


def _values(captured: Capture) -> Iterator[tuple[str, str]]:
    for name, entry in captured.tree["objects"].items():
        if entry["kind"] != "generator":
            yield from _flat(entry["state"], name)
    for name, entry in captured.tree["run"].items():
        if name not in _OWN_LEFT_OUT:
            yield from _flat(entry, name)


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if not value.keys() & {"$tensor", "$array"}:
            for key, part in value.items():
                yield from _flat(part, f"{path}/{key}")
    elif isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        for number, part in enumerate(value):
            yield from _flat(part, f"{path}/{number}")
    else:
        yield path, _text(value)


def _text(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 and not isinstance(value, list) else digest(value)


def _generators(states: Mapping[str, Any]) -> dict[str, list[Any]]:
    """[digest, whether it was drawn from, seed] of the run's generators by name."""
    found: dict[str, list[Any]] = {}
    for name, state in states["rng"].items():
        if name == "cuda":
            found |= {f"cuda:{index}": [digest(one), None, None] for index, one in enumerate(state)}
        else:
            found[name] = [digest(state), *_drawn(name, state)]
    found |= {f"tracked {name}": [digest(state), None, None] for name, state in states["watched"].items()}
    for slot, rows in states.get("slots", {}).items():
        found |= {f"loader {slot} {path}": [digest(states["table"][row]), None, None] for path, row in rows.items()}
    return found


def _drawn(name: str, state: Any) -> tuple[bool | None, int | None]:
    """Whether a global generator was drawn from since it was seeded, and its seed, as far as its state tells.

    A Mersenne twister stands at its end when it is fresh: `left` is 1 and `next` 0 in torch's CPUGeneratorImplState
    (aten/src/ATen/CPUGeneratorImpl.cpp), the index is 624 in Python's and numpy's; 623 in numpy's if nobody seeded it.
    """
    readers: dict[str, Callable[[], tuple[bool | None, int | None]]] = {
        "torch": lambda: _torch_drawn(state.tobytes()),
        "python": lambda: (int(state["words"][-1]) != 624, None),
        "numpy": lambda: (int(state["state"]["pos"]) not in (623, 624) if "pos" in state["state"] else None, None),
    }
    return readers[name]() if name in readers else (None, None)


def _torch_drawn(state: bytes) -> tuple[bool, int]:
    seed, left, _, place = struct.unpack_from("<QiiQ", state)
    return (left, place) != (1, 0), seed
