"""What a drill found, in words: the first thing that differs, its likely cause, what speaks for it, and the remedy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spotckpt.drill.compare import Carried, Difference

Cause = Literal[
    "unseeded generator",
    "untracked generator",
    "generator elsewhere",
    "untracked copy",
    "untracked state",
    "local accumulator",
    "data changed",
    "nondeterministic kernels",
    "inexact loader",
    "something else",
]

_GLOBAL = {
    "torch": ("torch's global generator", "torch.manual_seed(0)"),
    "numpy": ("numpy's global generator (np.random)", "np.random.seed(0)"),
    "python": ("Python's global generator (random)", "random.seed(0)"),
}
_MOST_BY_ROUNDING = 1e-2
"""Kernels that add in another order change a tensor by less of its size within one step."""

_PLAIN_TYPES = ("int", "float", "complex", "bool", "str", "NoneType", "list", "tuple", "dict", "set", "deque")
_RANK = {"generator": 0, "tensor": 1, "list": 2, "number": 3}
"""Which of the values that did not come back is told first."""


@dataclass(frozen=True)
class Finding:
    """Why two trainings do not end the same.

    Attributes:
        cause: in a word.
        first: the first thing that differs, in a line.
        why: what speaks for it.
        remedy: what to do.
        step: where it begins.
        name: of what is to be mended, or else of the first thing that differs.
    """

    cause: Cause
    first: str
    why: str
    remedy: str
    step: int
    name: str


def unseeded(names: Sequence[str], found: Difference) -> Finding:
    """Generators that stand elsewhere in another start of the program."""
    named = [generator(name) for name in names]
    return Finding(
        "unseeded generator",
        _line(found),
        f"{' and '.join(text for text, _ in named)}: not seeded, or not the same in each start, as two starts of the "
        "program draw other numbers before anything is interrupted",
        f"seed at the top of the training: {'; '.join(seed for _, seed in named)}",
        found.record.step,
        named[0][0],
    )


def seeded_late(name: str, found: Difference) -> Finding:
    """A generator that was drawn from before it was seeded."""
    text, seed = generator(name)
    return Finding(
        "unseeded generator",
        _line(found),
        f"{text} was drawn from before it was seeded: the first weights of two starts differ, and now it is the same",
        f"seed before the model is built: {seed}",
        found.record.step,
        text,
    )


def drawn_elsewhere(names: Sequence[str], found: Difference) -> Finding:
    """Generators that stand elsewhere after a resume, though two starts that resume nothing have them the same."""
    named = [generator(name)[0] for name in names]
    return Finding(
        "generator elsewhere",
        _line(found),
        f"{' and '.join(named)}: not where it was, after the resume, though the same in two starts "
        "that resume nothing: something draws only when the training is resumed, or only when it is not",
        "draw the same in both cases, or from a generator of its own",
        found.record.step,
        named[0],
    )


def data_changed(found: Difference, files: Sequence[str]) -> Finding:
    """Batches that are others although every generator is the same."""
    if files:
        why = f"{', '.join(files[:3])} changed between two starts, and every generator was the same"
    else:
        why = (
            "the batch is another one although every generator was the same: the data changed in between, or the order "
            "in which it is listed or read is not fixed"
        )
    remedy = "train on a copy of the data that nothing writes to, and sort what is listed (os.listdir, glob, sets)"
    return Finding("data changed", _line(found), why, remedy, found.record.step, files[0] if files else "batch")


def nondeterministic(found: Difference) -> Finding:
    """Tensors that are others although generators and batches are the same and nothing was resumed."""
    size = found.size
    if size is not None and not size <= _MOST_BY_ROUNDING:  # also NaN, which only one of them has
        return unknown(found)
    how = f"by {size:.0e} of its size" if size else "in a few bits"
    return Finding(
        "nondeterministic kernels",
        _line(found),
        f"{found.name} differs {how} between two starts, while generators and batches are the same and nothing was "
        "resumed: an operation's result depends on the order in which threads add",
        "torch.use_deterministic_algorithms(True) (with CUBLAS_WORKSPACE_CONFIG=:4096:8 on CUDA), or accept that no "
        "two trainings are equal",
        found.record.step,
        found.name,
    )


def inexact_loader(found: Difference) -> Finding:
    """What the training itself said when it resumed."""
    return Finding(
        "inexact loader",
        _line(found),
        "the loader's workers go on with other random numbers after a resume, as the training said when it resumed",
        'persistent_workers=False, resume="replay", or torchdata\'s StatefulDataLoader',
        found.record.step,
        "batch",
    )


def not_brought_back(
    carried: Sequence[Carried], tracked: Mapping[str, list[int]], found: Difference | None = None
) -> Finding:
    """A value of the train function that is carried from step to step and is in no snapshot.

    Args:
        carried: all that there are.
        tracked: the shapes of what is, by name, as in `model/0.weight`.
        found: the first thing recorded that differs, if there is one.
    """
    worst = sorted(carried, key=lambda one: (one.healed, one.life, *_rank(one), -one.changes))[0]
    name, what = worst.root, f"{worst.root} ({worst.type} of {worst.function})"
    later = f"; {_named(found)} follows {found.where}" if found is not None else ""
    others = [root for root in dict.fromkeys(one.root for one in carried) if root != name]
    later += f"; so with {', '.join(others)}" if others else ""
    first = f"{worst.path} after the resume at step {worst.step} (start {worst.life}): {_values(worst)}"
    track = f"run.track({_word(name)}={name})"
    if worst.kind == "generator":
        why = f"{what} is drawn from and is not part of the snapshots"
        return Finding("untracked generator", first, why + later, track, worst.step, name)
    if worst.kind == "tensor":
        together = [one.plain for one in carried if one.root == name and one.life == worst.life]
        twin = _twin(together, tracked)
        copied = f" has the tensors of {twin}, as a moving average (EMA) has," if twin else " changes from step to step"
        cause: Cause = "untracked copy" if twin else "untracked state"
        return Finding(cause, first, f"{what}{copied} and is not part of the snapshots{later}", track, worst.step, name)
    ignore = "" if found is not None else f"; if nothing depends on it: --ignore {name}"
    why = f"{what} is carried from step to step, and begins anew with each start"
    if worst.type not in _PLAIN_TYPES:
        return Finding("untracked state", first, why + later, track + ignore, worst.step, name)
    remedy = f'keep it in run.vars["{_word(name)}"], or log the parts and use run.mean(set, name)'
    return Finding("local accumulator", first, why + later, remedy + ignore, worst.step, name)


def printed_otherwise(line: str, because: Finding | None, *, missing: bool) -> Finding:
    """A line that only one of them printed, though all that is recorded is the same."""
    first = f"the interrupted training {'never printed' if missing else 'printed'}: {line.strip()}"
    if because is None:
        why = "every tensor, generator, batch and metric is the same: it depends on something that is not recorded"
        return Finding("something else", first, why, "look at what computes that line", 0, line.strip())
    return Finding(because.cause, first, f"{because.first}; {because.why}", because.remedy, because.step, because.name)


def unknown(found: Difference) -> Finding:
    """None of the others."""
    since = "before anything was resumed" if found.is_fresh else "only after a resume"
    return Finding(
        "something else",
        _line(found),
        f"it differs {since}, and nothing that is seeded, read or carried from step to step in sight explains it",
        "look for state outside of the train function: another module's variables, an iterator, a cache, the clock",
        found.record.step,
        found.name,
    )


def generator(name: str) -> tuple[str, str]:
    """A generator in words, and how it is seeded."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    kind, _, rest = name.partition(" ")
    if kind == "local":
        path, _, function = rest.partition("|")
        return f"the generator {path} of {function}", f"give {path} a fixed seed"
    if kind == "tracked":
        return f"the tracked generator {rest}", f"give {rest} a fixed seed"
    if kind == "loader":
        path = rest.partition(" ")[2]
        return f"the generator {path} of a data loader", f"give {path} a fixed seed"
    return f"the generator of {name}", "torch.manual_seed(0)"


def _rank(one: Carried) -> tuple[bool, int]:
    """`last_epoch` says more to a reader than `_last_lr` does."""
    is_private = re.search(r"\._[^.]*$", one.path) is not None
    return is_private and one.kind in ("list", "number"), _RANK[one.kind]


def _twin(texts: Sequence[str], tracked: Mapping[str, list[int]]) -> str:
    """The tracked object of whose tensors most have the very shapes that these have; empty if there is none."""
    for owner in dict.fromkeys(name.partition("/")[0] for name in tracked):
        own = Counter(f"a tensor of {shape}" for name, shape in tracked.items() if name.startswith(f"{owner}/"))
        if not Counter(texts) - own and len(texts) * 2 > own.total():
            return owner
    return ""


def _values(one: Carried) -> str:
    if one.kind == "number" or one.plain != one.found:
        return f"{one.plain} without the interruption, {one.found} with it"
    return "not what it was without the interruption"


def _line(found: Difference) -> str:
    start = f"start {found.life}" if found.life else "a second uninterrupted start"
    text = f"{_named(found)} {found.where} ({start})"
    return f"{text}: {found.plain}, then {found.found}" if found.group in ("values", "metrics") else text


def _named(found: Difference) -> str:
    if found.group == "batch":
        return "the batch"
    if found.group == "generators":
        return generator(found.name)[0]
    return {"tensors": "the tensor ", "metrics": "the metric "}.get(found.group, "") + found.name


def _word(path: str) -> str:
    """A name that can stand in a call: the last part of `self.ema`."""
    return path.rpartition(".")[2]
