"""The `spotckpt` command: finds the verb, runs it, and turns errors into one line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from spotckpt import __version__
from spotckpt.errors import SpotckptError, UsageError

INTERRUPTED_BY_USER = 128 + 2
NOBODY_READS = 128 + 13
_COMPLETION = "_SPOTCKPT_COMPLETE"


class _Verb(NamedTuple):
    """Where a command lives, and its line in the list, so that the list needs no import of it."""

    module: str
    summary: str


VERBS = {
    "ls": _Verb("spotckpt.cli.ls", "List the attempts and snapshots of a run."),
    "show": _Verb("spotckpt.cli.show", "Show what a snapshot holds, without downloading tensors."),
    "verify": _Verb("spotckpt.cli.verify", "Read whole snapshots and check every digest."),
    "pull": _Verb("spotckpt.cli.moving", "Write a snapshot to a .pt, safetensors or DCP file."),
    "push": _Verb("spotckpt.cli.moving", "Make a checkpoint file the first snapshot of a new run."),
    "prune": _Verb("spotckpt.cli.prune", "Delete snapshots that no rule keeps, and leftovers."),
    "pin": _Verb("spotckpt.cli.prune", "Keep a snapshot under a name, whatever is pruned."),
    "unpin": _Verb("spotckpt.cli.prune", "Take a pin away."),
    "fork": _Verb("spotckpt.cli.fork", "Begin another run with a snapshot of this one, sharing its bytes."),
    "curve": _Verb("spotckpt.cli.curve", "Draw metrics, interruptions and points to resume from."),
    "history": _Verb("spotckpt.cli.history", "Write the metrics of a run for other programs."),
    "diff": _Verb("spotckpt.cli.diff", "Compare two snapshots, of one run or of two."),
    "status": _Verb("spotckpt.cli.agent", "Show what the agent of this machine is doing."),
    "notify": _Verb("spotckpt.cli.agent", "Tell the agent by hand that the machine will go."),
    "agent": _Verb("spotckpt.cli.agent", "Run the agent in the foreground."),
    "exec": _Verb("spotckpt.cli.exec", "Run a command beside an agent, in one process tree."),
    "doctor": _Verb("spotckpt.cli.doctor", "Measure whether a snapshot fits into a spot notice here."),
    "drill": _Verb("spotckpt.cli.drill", "Interrupt your training, and see if it ends the same."),
    "demo": _Verb("spotckpt.cli.demo", "Interrupt a real training three ways; prove that nothing is lost."),
}

_EPILOG = """\b
Exit statuses:
  0   done
  1   diff, drill and demo found a difference, the doctor what does not fit
  10  bad address or selector      11  bad setting or environment value
  12  a value that cannot be held  20  the store failed
  21  no such object               22  there is a run already
  23  no such bucket               24  denied
  25  no credentials               26  unavailable
  27  outcome unknown              28  the store ignores conditions
  29  changed while it was read    31  corrupt
  32  written by a newer version   33  nothing fits the selector
  34  nothing can be restored      35  over a size limit
  36  the snapshot was pruned      40  no agent, or it failed
  41  staging area                 45  another agent runs already
  60  drill, demo: it failed       64  wrong command line
  75  exec: a notice or SIGTERM    126, 127  exec: no such command
  130 Ctrl-C
"""


class _Verbs(click.Group):
    """A group that imports a command when it is run or asked for help, not for the list."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the verb's module, whose function of that name is the command."""
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(VERBS[cmd_name].module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.command(
    cls=_Verbs, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="spotckpt")
def cli() -> None:
    """Checkpoints for PyTorch training on spot instances: atomic, verified, resumed bit for bit."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    if _COMPLETION in os.environ:  # the shell asks what could follow; this exits
        cli.main(prog_name="spotckpt", complete_var=_COMPLETION)
    try:
        # Not `cli.main`: that takes a broken pipe for status 1 and writes an empty line on Ctrl-C.
        with cli.make_context("spotckpt", list(sys.argv[1:] if arguments is None else arguments)) as context:
            status = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        _show(error)
        return UsageError.exit_status
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED_BY_USER
    except BrokenPipeError:
        # What is left in the buffer cannot be written either; Python would complain about that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except SpotckptError as error:
        # The edge: below it errors keep their type, here each becomes a line and a status.
        click.echo(f"spotckpt: error: {error}", err=True)
        return error.exit_status
    return status if isinstance(status, int) else 0


def _show(error: click.ClickException) -> None:
    """What is wrong with the command line and where to look, in one line like every other error."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    what = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "spotckpt"
    click.echo(f"spotckpt: error: {what[:1].lower()}{what[1:]}; see: {command} --help", err=True)
