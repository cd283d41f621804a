"""`spotckpt demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spotckpt.cli.drill import course, keep_option, s3_port_option
from spotckpt.config import size_text

if TYPE_CHECKING:
    from spotckpt.demo.compare import Verdict
    from spotckpt.drill.screen import Screen


@click.command(
    epilog="""\b
Example:
  spotckpt demo --seed 7
"""
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 2), default=1, show_default=True, help="Seed of the training.")
@keep_option
@s3_port_option
def demo(seed: int, keep: Path | None, s3_port: int | None) -> int:
    """Interrupt a real training three ways; prove that nothing is lost.

    Starts an S3 server and an instance metadata server on this machine, trains once without spotckpt, and once with a
    spot notice, with a machine that is killed in the middle of an upload, and to the end on a third one. Then compares
    every tensor, the RNG states and the loss curves of both, byte for byte. Takes about a minute and leaves nothing.

    It is a drill on a bundled training; for your own there is spotckpt drill. Exit status 1 means that they differ; the
    first difference is printed.
    """
    from spotckpt.demo.story import tell

    with course(keep, on_s3=True, s3_port=s3_port, verbose=True) as made:
        return report(tell(made, seed=seed, keep=keep), made.screen)


def report(verdict: Verdict, screen: Screen) -> int:
    """Shows the verdict; returns the exit status that it deserves."""
    from spotckpt.demo.compare import GROUPS

    for group in filter(verdict.counts.get, GROUPS):
        screen.verbatim(f"{verdict.counts[group]:6d} {GROUPS[group]} are equal")
    if verdict.difference:
        screen.verbatim(f"FAIL: {verdict.difference}", style="bold red")
        return 1
    passed = f"PASS: {size_text(verdict.compared_bytes)} compared, no byte differs ({screen.seconds:.0f} s)"
    screen.verbatim(passed, style="bold green")
    return 0
