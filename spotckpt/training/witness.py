"""What a drill and the probe in a trainer agree on: names in the environment, and files in the folder of one life.

The drill sets PROBE_VARIABLE to the folder of a life. It may hold `plan.json`; the probe writes `records.jsonl` there,
one JSON object for each record. At a held step it makes the file `held-<step>` and waits for `go-<step>`. No torch
here: the drill itself does not train.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from spotckpt.errors import UsageError

PROBE_VARIABLE = "SPOTCKPT_PROBE"
RECORDS_NAME = "records.jsonl"
PLAN_NAME = "plan.json"

At = Literal["open", "start", "step", "epoch", "end"]
"""When a record was made: the run is open; its first loop begins; a step or an epoch is over; the run is finished."""

_KEPT = ("generators", "locals", "tensors", "values")
"""Those of which only what changed since the record before is written."""


@dataclass(frozen=True)
class Plan:
    """What the trainer does for the drill, by the number of boundaries passed.

    Attributes:
        saves: a snapshot is asked for at these.
        holds: the trainer waits at these, before what is due there.
        slow_from: from here on it rests a little at each: so that a fast training does not outrun a notice.
    """

    saves: tuple[int, ...] = ()
    holds: tuple[int, ...] = ()
    slow_from: int | None = None

    def write(self, folder: Path) -> None:
        """Puts it where the probe of that life looks."""
        (folder / PLAN_NAME).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """What `write` wrote; an empty plan without it."""
        try:
            fields = json.loads((folder / PLAN_NAME).read_text())
        except FileNotFoundError:
            return cls()
        return cls(tuple(fields["saves"]), tuple(fields["holds"]), fields["slow_from"])


def require_the_drills(uri: str) -> None:
    """Before anything is claimed: a drill must not touch a run that is not its own.

    Raises:
        UsageError: the program opens another one.
    """
    given = os.environ.get("SPOTCKPT_URI", "")
    if os.environ.get(PROBE_VARIABLE) and uri.rstrip("/") != given.rstrip("/"):
        raise UsageError(
            f"the drill's run is {given}, and the program opens {uri}",
            hint="write {uri} where the command takes the address: spotckpt drill -- python train.py --resume {uri}",
        )


def held_path(folder: Path, step: int) -> Path:
    """The file that says that the trainer waits at that step."""
    return folder / f"held-{step}"


def go_path(folder: Path, step: int) -> Path:
    """The file that ends the hold at that step."""
    return folder / f"go-{step}"


@dataclass(frozen=True)
class Record:
    """A training at one moment. A digest is a short text, equal for equal bytes.

    Attributes:
        at: see `At`.
        step: boundaries passed.
        epoch: the epoch then.
        generators: name → [digest, whether anything was drawn since it was seeded or None, seed or None].
        batch: `batch` → digest of what the loop gave out for this step.
        tensors: name → [digest, sum of magnitudes or None, shape], of all that is tracked.
        values: path → text, of what is tracked and no tensor.
        metrics: `set/name` → text, of what was logged since the record before; at the end the digest of each series.
        locals: path → [kind, digest, text, type, function], of what the train function sees and nobody tracks.
    """

    at: At
    step: int
    epoch: int = 0
    generators: dict[str, list[Any]] = field(default_factory=dict)
    batch: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, list[Any]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    locals: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, int]:
        """Equal for the same moment of another life."""
        return self.at, self.step, self.epoch if self.at == "epoch" else 0


class Delta:
    """Records as lines that repeat nothing: writing and reading are each other's inverse."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, Any]] = {name: {} for name in _KEPT}

    def to_line(self, record: Record) -> dict[str, Any]:
        """What changed since the last one."""
        line = asdict(record)
        for name in _KEPT:
            now, before = line[name], self._last[name]
            self._last[name] = now
            line[name] = {key: value for key, value in now.items() if before.get(key) != value}
            line[f"no {name}"] = [key for key in before if key not in now]
        return line

    def from_line(self, line: dict[str, Any]) -> Record:
        """The whole record again."""
        fields = dict(line)
        for name in _KEPT:
            gone = set(fields.pop(f"no {name}"))
            before = {key: value for key, value in self._last[name].items() if key not in gone}
            fields[name] = self._last[name] = before | fields[name]
        return Record(**fields)


@dataclass(frozen=True)
class Life:
    """What the probe of one process wrote.

    Attributes:
        records: in order.
        files: path → [size, time of modification in ns] of files that were opened for reading, when they first were.
        resumed_from: the snapshot it went on from, or None.
    """

    records: tuple[Record, ...] = ()
    files: dict[str, list[int]] = field(default_factory=dict)
    resumed_from: str | None = None

    @property
    def opened(self) -> bool:
        """Whether a run was opened at all."""
        return bool(self.records)

    @property
    def ended(self) -> bool:
        """Whether the run was finished."""
        return bool(self.records) and self.records[-1].at == "end"

    @property
    def last_step(self) -> int:
        """The boundaries that it passed."""
        return max((record.step for record in self.records), default=0)

    @property
    def start(self) -> Record | None:
        """As its first loop began, all restored."""
        return next((record for record in self.records if record.at == "start"), None)


def read_life(folder: Path) -> Life:
    """What there is by now; a line that is being written does not count."""
    try:
        text = (folder / RECORDS_NAME).read_text()
    except FileNotFoundError:
        return Life()
    delta = Delta()
    records: list[Record] = []
    files: dict[str, list[int]] = {}
    resumed_from = None
    for line in _whole_lines(text):
        if "file" in line:
            files.setdefault(line["file"], line["stat"])
        elif "resumed_from" in line:
            resumed_from = line["resumed_from"]
        else:
            records.append(delta.from_line(line))
    return Life(tuple(records), files, resumed_from)


def _whole_lines(text: str) -> Iterable[dict[str, Any]]:
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
