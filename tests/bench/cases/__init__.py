"""The cases by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.bench import Bench, Found
from tests.bench.cases.agents import agent
from tests.bench.cases.commands import command_line
from tests.bench.cases.interruptions import notices
from tests.bench.cases.loops import gpu, overlapped, staged, throughput, uploaded
from tests.bench.cases.metrics import logging
from tests.bench.cases.restores import restore, restore_seaweed
from tests.bench.cases.saves import blocked, first, save, save_seaweed
from tests.bench.cases.tensors import frozen, many

Case = Callable[[Bench], Found]

CASES: dict[str, Case] = {
    "blocked": blocked,
    "save": save,
    "staged": staged,
    "uploaded": uploaded,
    "overlapped": overlapped,
    "gpu": gpu,
    "first": first,
    "restore": restore,
    "agent": agent,
    "frozen": frozen,
    "many": many,
    "metrics": logging,
    "help": command_line,
    "notices": notices,
    "save-seaweed": save_seaweed,
    "restore-seaweed": restore_seaweed,
    "throughput": throughput,
}
LONG = {"staged", "overlapped", "first", "save-seaweed", "restore-seaweed", "throughput"}
"""Not part of a quick run: they take minutes, or differences of times that scatter, which take many rounds."""
