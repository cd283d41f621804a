"""`spotckpt demo`."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from spotckpt.cli import output
from spotckpt.errors import SettingError

if TYPE_CHECKING:
    from spotckpt.demo.compare import Verdict
    from spotckpt.demo.screen import Screen

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(
    epilog="""\b
Example:
  spotckpt demo --seed 7
"""
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 2), default=1, show_default=True, help="Seed of the training.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep logs, end states and a copy of the bucket in this new directory.",
)
@click.option(
    "--s3-port",
    type=click.IntRange(1, 65535),
    help="Use the S3 server on this port of 127.0.0.1, as localstack/run.sh starts one, instead of moto's.",
)
def demo(seed: int, keep: Path | None, s3_port: int | None) -> int:
    """Interrupt a real training three ways and prove that nothing is lost.

    Starts an S3 server and an instance metadata server on this machine, trains once without spotckpt, and once with a
    spot notice, with a machine that is killed in the middle of an upload, and to the end on a third one. Then compares
    every tensor, the RNG states and the loss curves of both, byte for byte. Takes about a minute and leaves nothing.

    Exit status 1 means that they differ; the first difference is printed.
    """
    from spotckpt.demo.bucket import require_extra
    from spotckpt.demo.screen import Screen
    from spotckpt.demo.story import tell

    if s3_port is None:
        require_extra()
    if keep is not None:
        _make_new(keep)
    for number in _STOP_SIGNALS:
        signal.signal(number, _leave)
    screen = Screen(output.console(), log_path=keep / "demo.log" if keep else None)
    verdict = tell(screen, seed=seed, keep=keep, s3_port=s3_port or 0)
    return report(verdict, screen)


def _make_new(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise SettingError(
            f"--keep {directory} cannot be made: {error.strerror}", hint="name a directory that is not there yet"
        ) from error


def report(verdict: Verdict, screen: Screen) -> int:
    """Shows the verdict; returns the exit status that it deserves."""
    from spotckpt.demo.compare import GROUPS

    for group in filter(verdict.counts.get, GROUPS):
        screen.verbatim(f"{verdict.counts[group]:6d} {GROUPS[group]} are equal")
    if verdict.difference:
        screen.verbatim(f"FAIL: {verdict.difference}", style="bold red")
        return 1
    passed = f"PASS: {output.size(verdict.compared_bytes)} compared, no byte differs ({screen.seconds:.0f} s)"
    screen.verbatim(passed, style="bold green")
    return 0


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leaves by an exception, so that every child is stopped on the way out, which further signals do not disturb."""
    for other in _STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)
