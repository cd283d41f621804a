"""Why an interrupted training ends differently: the likely cause, from where and how the difference begins. Pure.

A difference before anything was resumed cannot come from a resume: two starts of the program are not the same. Then a
generator that was drawn from and stands elsewhere was not seeded; a batch that differs while every generator is the
same was read from data that changed; and tensors that differ although generators and batches are the same were computed
by kernels whose result depends on the order in which threads add. A difference only after a resume is state that no
snapshot holds, and it is looked for among what the train function carries from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from spotckpt.drill import findings
from spotckpt.drill.compare import (
    Carried,
    Difference,
    Noise,
    Plain,
    carried_of,
    changed_files,
    first_difference,
    lines_apart,
    noise_of,
)
from spotckpt.drill.findings import Finding
from spotckpt.training.witness import Life, Record

_INEXACT = "random augmentation inside its workers is not the same"


@dataclass(frozen=True)
class Told:
    """One process's life, and what it printed."""

    life: Life
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Evidence:
    """All that was seen.

    Attributes:
        plain: the uninterrupted training.
        lives: the interrupted one, each start.
        control: a second uninterrupted one, if there was one.
        ignored: names that do not count.
        whole: the interrupted one has come to its end; before that only what cannot heal any more counts.
    """

    plain: Told
    lives: Sequence[Told]
    control: Told | None = None
    ignored: frozenset[str] = frozenset()
    whole: bool = True


@dataclass(frozen=True)
class Verdict:
    """What is known.

    Attributes:
        finding: None if both are the same.
        needs_control: only another uninterrupted training could tell.
        notes: what is worth knowing and made no difference.
    """

    finding: Finding | None = None
    needs_control: bool = False
    notes: list[str] = field(default_factory=list)


def judge(evidence: Evidence) -> Verdict:
    """Compares and names the likely cause."""
    plain = Plain(evidence.plain.life, evidence.ignored)
    fresh = [(number, told) for number, told in enumerate(evidence.lives, 1) if told.life.resumed_from is None]
    noise = Noise()
    for number, told in [*fresh, *([(0, evidence.control)] if evidence.control else [])]:
        found = first_difference(plain, told.life, number=number, is_fresh=True)
        if found is not None:
            return Verdict(_of_the_program(plain.life, told.life, found))
        noise |= noise_of(plain, told.life)
    return _after_resumes(evidence, plain, noise)


# What two starts of the program have not in common


def _of_the_program(plain: Life, other: Life, found: Difference) -> Finding:
    files = changed_files(plain, other)
    generators = _unseeded(plain, other, found)
    if generators and not files:
        return findings.unseeded(generators, found)
    if found.group == "batch" or files:
        return findings.data_changed(found, files)
    if found.record.at != "start":
        return findings.nondeterministic(found)
    early = _standing_elsewhere(plain.records[0], other.records[0])
    if not early:
        return findings.unknown(found)
    return findings.seeded_late("torch" if "torch" in early else early[0], found)


def _unseeded(plain: Life, other: Life, found: Difference) -> list[str]:
    """The generators that stand elsewhere at the first difference, or before it, and are drawn from."""
    names: dict[str, None] = {}
    for before, after in _up_to(plain, other, found):
        names |= dict.fromkeys(name for name in _standing_elsewhere(before, after) if _is_drawn(other, after, name))
        for path, leaf in after.locals.items():
            if leaf[0] == "generator" and path in before.locals and before.locals[path][1] != leaf[1]:
                names[f"local {path}|{leaf[5]}"] = None
    return list(names)


def _standing_elsewhere(before: Record, after: Record) -> list[str]:
    return [
        name
        for name, value in after.generators.items()
        if name in before.generators and before.generators[name][0] != value[0]
    ]


def _is_drawn(life: Life, record: Record, name: str) -> bool:
    """Whether anything was drawn from it: its state tells, or it changes."""
    drawn = record.generators[name][1]
    if drawn is not None:
        return bool(drawn)
    return len({one.generators[name][0] for one in life.records if name in one.generators}) > 1


def _up_to(plain: Life, other: Life, found: Difference) -> Iterator[tuple[Record, Record]]:
    by_key = {record.key: record for record in plain.records}
    for record in other.records:
        if record.at != "open" and record.key in by_key:
            yield by_key[record.key], record
        if record is found.record:
            return


# What a resume did not bring back


def _after_resumes(evidence: Evidence, plain: Plain, noise: Noise) -> Verdict:
    carried: list[Carried] = []
    found: Difference | None = None
    for number, told in enumerate(evidence.lives, start=1):
        if told.life.resumed_from is not None:
            carried += carried_of(plain, told.life, number=number, noise=noise)
            found = found or first_difference(plain, told.life, number=number, is_fresh=False, noise=noise)
    if found is not None:
        mine = [one for one in carried if one.life <= found.life]
        return _of_a_difference(evidence, plain, found, mine, noise)
    if not evidence.whole:
        return Verdict()
    lasting = [one for one in carried if not one.healed]
    if lasting:
        return Verdict(findings.not_brought_back(lasting, _twins(plain)))
    return _of_the_output(evidence, plain, carried, noise)


def _of_a_difference(
    evidence: Evidence, plain: Plain, found: Difference, carried: Sequence[Carried], noise: Noise
) -> Verdict:
    told, before = evidence.lives[found.life - 1], plain.at(found.record)
    files = changed_files(plain.life, told.life) if found.group == "batch" else []
    apart = [] if before is None else _standing_elsewhere(before, found.record)
    apart = [name for name in apart if ("generators", name) not in noise]
    if files:
        return Verdict(findings.data_changed(found, files))
    if found.group == "batch" and any(_INEXACT in line for line in told.lines):
        return Verdict(findings.inexact_loader(found))
    if carried and (found.group != "batch" or any(one.kind == "generator" for one in carried)):
        return Verdict(findings.not_brought_back(carried, _twins(plain), found))
    if evidence.control is None:
        return Verdict(needs_control=True)
    if found.group in ("batch", "generators") and apart:
        return Verdict(findings.drawn_elsewhere(apart, found))
    return Verdict(findings.data_changed(found, files) if found.group == "batch" else findings.unknown(found))


def _of_the_output(evidence: Evidence, plain: Plain, carried: Sequence[Carried], noise: Noise) -> Verdict:
    """Nothing that is recorded differs; what was printed may."""
    said = [line for told in evidence.lives for line in told.lines]
    control = evidence.control.lines if evidence.control else None
    apart = lines_apart(evidence.plain.lines, said, control, others_too=bool(carried))
    if apart and evidence.control is None:
        return Verdict(needs_control=True)
    if apart:
        because = findings.not_brought_back(carried, _twins(plain)) if carried else None
        return Verdict(findings.printed_otherwise(apart[0], because, missing=apart[0] in evidence.plain.lines))
    return Verdict(notes=list(_notes(plain.life, carried, noise)))


def _twins(plain: Plain) -> dict[str, list[int]]:
    return {name: value[2] for name, value in plain.life.records[-1].tensors.items()}


def _notes(plain: Life, carried: Sequence[Carried], noise: Noise) -> Iterator[str]:
    last = plain.records[-1]
    apart = sorted(name for group, name in noise.names if group == "generators" and name in last.generators)
    for name in (name for name in apart if _is_drawn(plain, last, name)):
        yield f"{findings.generator(name)[0]} is not seeded; nothing here depends on it"
    metrics = sorted(name for group, name in noise.names if group == "metrics")
    if metrics:
        yield f"not compared, as they differ without an interruption too: {', '.join(metrics)}"
    for root in dict.fromkeys(one.root for one in carried):
        yield f"{root} did not come back with the resume; it was the same again later, and nothing depended on it"
