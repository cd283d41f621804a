"""One line of the doctor's table, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["fits", "does not fit", "advice", "-"]
"""advice: it goes, and could go better. -: a fact that nothing is compared with, or that is not known."""


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        check: what was looked at.
        found: what was found, in numbers.
        verdict: see `Verdict`.
        remedy: what to do, as a command, an action of a policy or a setting; empty if there is nothing to do.
    """

    check: str
    found: str
    verdict: Verdict
    remedy: str = ""


def seconds_text(seconds: float) -> str:
    """`0.3 s`, `38 s`."""
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def of_text(taken_s: float, there_s: float) -> str:
    """`38 s of 110 s`."""
    return f"{seconds_text(taken_s)} of {there_s:g} s"
