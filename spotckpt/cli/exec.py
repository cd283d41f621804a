"""`spotckpt exec`: agent and supervisor in one process tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spotckpt.cli import output
from spotckpt.cli.agent import agent_options
from spotckpt.config import parse_seconds
from spotckpt.errors import UsageError

if TYPE_CHECKING:
    from spotckpt.agent.log import LogFormat


@click.command(
    epilog="""\b
Example:
  spotckpt exec --restarts 3 -- python train.py --resume s3://bucket/run
""",
    context_settings={"allow_interspersed_args": False},
)
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How often the command is started again when it fails.",
)
@click.option(
    "--sigterm-grace", default="10s", show_default=True, help="How long after SIGTERM everything must have ended."
)
@agent_options
@output.log_format_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def exec(
    command: tuple[str, ...],
    *,
    restarts: int,
    sigterm_grace: str,
    runtime_dir: Path | None,
    spool_dir: Path | None,
    metadata_endpoint: str,
    poll_interval: float,
    log_format: LogFormat,
) -> int:
    """Run a command beside an agent, in one process tree.

    For containers, where it may be PID 1, and wherever there is no systemd: spotckpt exec -- python train.py. Signals
    go to the command; however it ends, what it had staged is committed before this ends. The exit status is the
    command's own, 128 and the number of the signal that killed it; after a notice or SIGTERM it is 75.
    After a failure it is started again if --restarts allows it and no notice is in force; after 0, 75 and 76 never.
    """
    from spotckpt.agent import paths
    from spotckpt.agent.options import AgentOptions
    from spotckpt.agent.supervise import Orders, supervise

    if not command:
        raise UsageError("there is no command to run", hint="write it as in: spotckpt exec -- python train.py")
    agent = AgentOptions(
        runtime_dir=runtime_dir or paths.runtime_dir(),
        spool_dir=spool_dir or paths.spool_dir(),
        metadata_endpoint=metadata_endpoint,
        poll_interval_s=poll_interval,
        log_format=log_format,
    )
    grace_s = parse_seconds(sigterm_grace, name="--sigterm-grace")
    orders = Orders(command, agent, restarts=restarts, grace_s=grace_s)
    return supervise(orders, lambda text: click.echo(f"spotckpt: {text}", err=True))
