"""Where an interrupted training first differs from one that nobody interrupted. Pure: reads records, asks nobody."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from spotckpt.training.witness import Life, Record

Group = Literal["batch", "generators", "tensors", "values", "metrics", "locals", "output"]

_HARD: tuple[Group, ...] = ("batch", "generators", "tensors", "values", "metrics")
"""In the order in which one follows from the other within a step."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same.

    Attributes:
        life: which start of the interrupted training, from 1; 0 for a second uninterrupted one.
        record: of that life.
        group: what kind of thing.
        name: of it.
        plain, found: how it was without the interruption and how it is, in words or digests.
        is_fresh: nothing had been resumed by then, so no resume can be the cause.
    """

    life: int
    record: Record
    group: Group
    name: str
    plain: Any
    found: Any
    is_fresh: bool

    @property
    def size(self) -> float | None:
        """How large the difference is relative to the tensor, by the sums of magnitudes; None if it cannot be told."""
        if self.group != "tensors" or not self.plain or not self.found:
            return None
        before, after = self.plain[1], self.found[1]
        return None if not before or after is None else abs(before - after) / abs(before)

    @property
    def where(self) -> str:
        """The moment, in words."""
        at, step = self.record.at, self.record.step
        if at == "start":
            return f"before step {step + 1}" if step else "at the start"
        names = {"step": f"at step {step}", "epoch": f"at the end of epoch {self.record.epoch}"}
        return names.get(at, f"at the end (step {step})")


@dataclass(frozen=True)
class Noise:
    """What differs between two trainings that nobody interrupted without anything depending on it: times, for one."""

    names: frozenset[tuple[str, str]] = frozenset()

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __or__(self, other: Noise) -> Noise:
        return Noise(self.names | other.names)


@dataclass(frozen=True)
class Plain:
    """The uninterrupted training, by moments."""

    life: Life
    ignored: frozenset[str] = frozenset()
    by_key: Mapping[tuple[str, int, int], Record] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_key", {record.key: record for record in self.life.records})

    def at(self, record: Record) -> Record | None:
        """The same moment of it."""
        return self.by_key.get(record.key)

    def reached(self, step: int) -> Record | None:
        """The last record at that step: what a training that resumes there has to find."""
        found = [record for record in self.life.records if record.step == step and record.at != "end"]
        return found[-1] if found else None


def pairs(plain: Plain, life: Life) -> Iterator[tuple[Record, Record]]:
    """Each moment that both have, as (uninterrupted, other), in order.

    The start of a resumed life is none of them: its loops are not where those of the other one are at any moment.
    """
    for record in life.records:
        if record.at == "open" or (record.at == "start" and life.resumed_from is not None):
            continue
        other = plain.at(record)
        if other is not None:
            yield other, record


def first_difference(
    plain: Plain, life: Life, *, number: int, is_fresh: bool, noise: Collection[tuple[str, str]] | Noise = frozenset()
) -> Difference | None:
    """The first thing that differs and counts.

    In a training that resumed nothing neither a generator nor a metric alone counts: an unseeded generator from which
    nothing is drawn, or a time that is logged, is no difference in the training.
    """
    groups = ("batch", "tensors") if is_fresh else _HARD
    for before, after in pairs(plain, life):
        for group in groups:
            for name, one, other in _unequal(before, after, group):
                if (group, name) not in noise and name not in plain.ignored:
                    return Difference(number, after, group, name, one, other, is_fresh)
    return None


def noise_of(plain: Plain, life: Life) -> Noise:
    """What differs between the two although batches and tensors are the same up to there."""
    names: set[tuple[str, str]] = set()
    for before, after in pairs(plain, life):
        if any(True for group in ("batch", "tensors") for _ in _unequal(before, after, group)):
            break
        for group in ("generators", "values", "metrics", "locals"):
            names |= {(group, name) for name, _, _ in _unequal(before, after, group)}
            names |= {(group, name) for name in getattr(before, group).keys() ^ getattr(after, group).keys()}
    return Noise(frozenset(names))


def _unequal(before: Record, after: Record, group: str) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of what differs; of a digest with more beside it only the digest counts."""
    one, other = getattr(before, group), getattr(after, group)
    for name in [*one, *(name for name in other if name not in one)]:
        if group == "locals" and (name not in one or name not in other):
            continue
        if _digest(one.get(name), group) != _digest(other.get(name), group):
            yield name, one.get(name), other.get(name)


def _digest(value: Any, group: str) -> Any:
    if value is None:
        return None
    if group == "locals":
        return value[1]
    return value[0] if group in ("generators", "tensors") else value


@dataclass(frozen=True)
class Carried:
    """A value that the train function carries from step to step and that no snapshot brought back.

    Attributes:
        path: as in `ema.0.weight`.
        kind: tensor, number, list or generator.
        root: the variable.
        type: of the variable.
        function: that sees it.
        life: in which it differs first.
        step: from which on.
        plain, found: how it was without the interruption, and how it is.
        healed: at the end it was the same again.
        stayed: it still differed when the first step after the resume was over.
        changes: how many values it had in the uninterrupted training.
    """

    path: str
    kind: str
    root: str
    type: str
    function: str
    life: int
    step: int
    plain: str
    found: str
    healed: bool
    stayed: bool
    changes: int


def carried_of(plain: Plain, life: Life, *, number: int, noise: Noise) -> list[Carried]:
    """The values seen by the train function that changed from step to step and did not come back with a resume.

    Compared where the loops begin again: what is only assigned in their bodies does not exist there yet.
    """
    steps = [(before, after) for before, after in pairs(plain, life) if after.at in ("step", "epoch")]
    if life.resumed_from is None or not steps:
        return []
    start, reached = life.start, None if life.start is None else plain.reached(life.start.step)
    if start is None or reached is None:  # a loop of the program's own, of which only boundaries are known
        reached, start = steps[0]
    found = []
    for path, one in reached.locals.items():
        other = start.locals.get(path)
        if other is None and one[3] not in {leaf[3] for leaf in start.locals.values()}:
            continue  # it is only assigned in the loops
        if ("locals", path) in noise or path in plain.ignored or (other is not None and other[1] == one[1]):
            continue
        changes = _changes(plain, path)
        if changes > 1:
            found.append(_carried(path, one, other, steps, life=number, step=start.step, changes=changes))
    return [one for one in found if one.stayed and one.root not in plain.ignored]


def _carried(
    path: str,
    one: list[Any],
    other: list[Any] | None,
    steps: Sequence[tuple[Record, Record]],
    *,
    life: int,
    step: int,
    changes: int,
) -> Carried:
    same = [
        before.locals[path][1] == after.locals[path][1]
        for before, after in steps
        if path in before.locals and path in after.locals
    ]
    kind, _, text, root, type_name, function = one
    return Carried(
        path=path,
        kind=kind,
        root=root,
        type=type_name,
        function=function,
        life=life,
        step=step,
        plain=text,
        found="missing" if other is None else other[2],
        healed=bool(same) and same[-1],
        stayed=not same or not same[0],
        changes=changes,
    )


def _changes(plain: Plain, path: str) -> int:
    return len({record.locals[path][1] for record in plain.life.records if path in record.locals})


def changed_files(plain: Life, other: Life) -> list[str]:
    """Files that both read and that were not the same then."""
    return sorted(path for path, stat in plain.files.items() if path in other.files and other.files[path] != stat)


def lines_apart(
    plain: Sequence[str], lives: Sequence[str], control: Sequence[str] | None, *, others_too: bool
) -> list[str]:
    """What was printed differently, but for the kinds of lines in which the control differs too, such as times.

    Args:
        plain: what the uninterrupted training printed.
        lives: what all starts of the interrupted one did.
        control: what a second uninterrupted one did.
        others_too: also the interrupted one's lines that the other never printed, if it printed such with other
            numbers; else only those that are missing.
    """
    noise = {_shape(line) for line in {*plain} ^ {*control}} if control is not None else set()
    missing = [line for line in plain if line not in {*lives}]
    shapes = {_shape(line) for line in plain}
    others = [line for line in lives if line not in {*plain} and _shape(line) in shapes] if others_too else []
    return [line for line in [*missing, *others] if line.strip() and _shape(line) not in noise]


def _shape(line: str) -> str:
    """A line without its numbers."""
    return re.sub(r"\d[\d.]*(?:e[+-]?\d+)?", "#", line)
