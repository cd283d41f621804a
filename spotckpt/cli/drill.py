"""`spotckpt drill`."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from spotckpt.cli import output
from spotckpt.drill.plan import KINDS, Kind
from spotckpt.errors import SettingError, UsageError

if TYPE_CHECKING:
    from spotckpt.drill.course import Course
    from spotckpt.drill.drill import Result
    from spotckpt.drill.places import Place
    from spotckpt.drill.screen import Screen

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

keep_option = click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep logs, and for the demo end states and a copy of the bucket, in this new directory.",
)
s3_port_option = click.option(
    "--s3-port",
    type=click.IntRange(1, 65535),
    help="Use the S3 server on this port of 127.0.0.1, as localstack/run.sh starts one, instead of moto's.",
)


def _kinds(context: click.Context, parameter: click.Parameter, text: str) -> tuple[Kind, ...]:
    known = {kind: kind for kind in KINDS}
    try:
        return tuple(known[part.strip()] for part in text.split(","))  # type: ignore[index]
    except KeyError as error:
        raise SettingError(f"--kinds: {error} is no kind", hint=f"some of {','.join(KINDS)}") from None


@click.command(
    epilog="""\b
Examples:
  spotckpt drill -- python train.py --resume {uri}
  spotckpt drill --interruptions 2 --kinds notice,kill-trainer --seed 7 -- python train.py
""",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--interruptions", type=click.IntRange(min=1), help="How many.  [default: one of each kind]")
@click.option(
    "--kinds",
    default=",".join(KINDS),
    callback=_kinds,
    help=f"Which, of {', '.join(KINDS)}, separated by commas.  [default: all]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of their places and order.")
@click.option("--uri", help="Write below this address, as s3://bucket/scratch.  [default: a temporary directory]")
@click.option("--s3", is_flag=True, help="Write to an S3 server that is started for it (moto's).")
@s3_port_option
@click.option("--ignore", multiple=True, metavar="NAME", help="A metric or variable that may differ; several times.")
@keep_option
@click.option("-v", "--verbose", is_flag=True, help="Show what trainings and agents say.")
@output.json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def drill(
    command: tuple[str, ...],
    *,
    interruptions: int | None,
    kinds: tuple[Kind, ...],
    seed: int,
    uri: str | None,
    s3: bool,
    s3_port: int | None,
    ignore: tuple[str, ...],
    keep: Path | None,
    verbose: bool,
    as_json: bool,
) -> int:
    """Interrupt your training, and see if it ends the same.

    COMMAND is your own program, which uses spotckpt.resumable or spotckpt.open_run. It runs once undisturbed and once
    with interruptions: a spot notice, SIGTERM, SIGKILL of the trainer, of the agent, of both in the middle of an
    upload. Every tensor, generator, batch and metric is compared at every step. If something differs, the first such
    thing and its likely cause are named. It takes a few times as long as the training: give it a short one.

    The address of the run is given by SPOTCKPT_URI, and in place of {uri} in COMMAND.

    Exit status 0: the same; 1: a difference; 60: the program failed by itself.
    """
    from spotckpt.drill.drill import Orders
    from spotckpt.drill.drill import drill as carry_out

    if not command:
        raise UsageError("there is no command to run", hint="write it as in: spotckpt drill -- python train.py")
    orders = Orders(command, kinds, interruptions, seed, frozenset(ignore))
    with course(keep, uri=uri, s3_port=s3_port, on_s3=s3, verbose=verbose, quiet=as_json) as made:
        result = carry_out(orders, made)
    if as_json:
        output.emit(result.to_json())
    else:
        report(result, made.screen)
    return int(result.verdict.finding is not None)


@contextmanager
def course(
    keep: Path | None,
    *,
    uri: str | None = None,
    s3_port: int | None = None,
    on_s3: bool = False,
    verbose: bool = False,
    quiet: bool = False,
) -> Iterator[Course]:
    """Everything that a drill needs; every process, port and temporary file is gone afterwards, come what may."""
    from spotckpt.drill.course import Course, stage
    from spotckpt.drill.places import require_server
    from spotckpt.drill.screen import Screen

    if on_s3 and s3_port is None:
        require_server()
    if keep is not None:
        _make_new(keep)
    for number in _STOP_SIGNALS:
        signal.signal(number, _leave)
    screen = Screen(output.console(), log_path=keep / "drill.log" if keep else None, quiet=quiet)
    with stage(keep) as (stack, work, kept):
        place = _place(uri, s3_port, on_s3=on_s3, work=work, kept=kept, screen=screen)
        stack.callback(place.stop)
        place.start()
        screen.say("bucket", f"{place}")
        yield Course(screen, place, work, kept, verbose=verbose)


def _place(uri: str | None, s3_port: int | None, *, on_s3: bool, work: Path, kept: Path, screen: Screen) -> Place:
    from spotckpt.drill.places import Bucket, Folder, Prefix

    if uri is not None:
        return Prefix(uri, lambda text: screen.say("drill", text))
    if on_s3 or s3_port is not None:
        return Bucket(port=s3_port or 0, log_path=kept / "bucket.log", temporary=work)
    return Folder(work / "bucket")


def report(result: Result, screen: Screen) -> None:
    """Shows what came of it."""
    finding = result.verdict.finding
    screen.chapter("The end")
    if finding is None:
        compared = ", ".join(f"{name} {count}" for name, count in result.counts.items())
        screen.verbatim(f"SAME: no byte differs ({screen.seconds:.0f} s)", style="bold green")
        screen.pairs([("compared", compared)])
    else:
        screen.verbatim(f"DIFFERENT: {finding.cause} ({screen.seconds:.0f} s)", style="bold red")
        screen.pairs(_pairs(finding.first, finding.why, finding.remedy))
    for note in result.verdict.notes:
        screen.pairs([("note", note)])


def _pairs(first: str, why: str, remedy: str) -> Iterable[tuple[str, str]]:
    return (("first", first), ("likely cause", why), ("remedy", remedy))


def _make_new(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise SettingError(
            f"--keep {directory} cannot be made: {error.strerror}", hint="name a directory that is not there yet"
        ) from error


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leaves by an exception, so that every child is stopped on the way out, which further signals do not disturb."""
    for other in _STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)
