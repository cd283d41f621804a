"""From facts to verdicts: what fits, what does not, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from spotckpt.config import size_text
from spotckpt.doctor.facts import Facts
from spotckpt.doctor.judge_bucket import bucket_rows
from spotckpt.doctor.judge_machine import machine_rows
from spotckpt.doctor.judge_time import time_rows
from spotckpt.doctor.row import Row


def judge(facts: Facts) -> list[Row]:
    """The whole table, in the order in which it is read."""
    return [_state(facts), *bucket_rows(facts.bucket), *time_rows(facts), *machine_rows(facts)]


def all_fit(rows: Sequence[Row]) -> bool:
    """Whether nothing does not fit."""
    return all(row.verdict != "does not fit" for row in rows)


def _state(facts: Facts) -> Row:
    size = facts.state.size_bytes
    if size is None:
        remedy = "--state-bytes 10GB (parameters; Adam's moments are twice as much again)"
        return Row("state", f"unknown: {facts.state.source}", "-", remedy)
    return Row("state", f"{size_text(size)} ({facts.state.source})", "-")
