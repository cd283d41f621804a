"""`spotckpt agent`, `status` and `notify`: the agent of this machine."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from spotckpt.cli import output
from spotckpt.config import size_text

if TYPE_CHECKING:
    from spotckpt.agent.log import LogFormat

_TIMEOUT_S = 10.0

_runtime_dir = click.option(
    "--runtime-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the agent's socket is.  [default: SPOTCKPT_RUNTIME_DIR, or by user id]",
)
_AGENT_OPTIONS = (
    _runtime_dir,
    click.option(
        "--spool-dir",
        "--spool",
        "spool_dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where snapshots are staged.  [default: SPOTCKPT_SPOOL, or in /dev/shm by user id]",
    ),
    click.option("--metadata-endpoint", default="", help="Ask here for notices instead of EC2's own address."),
    click.option("--poll-interval", type=float, default=5.0, show_default=True, help="Seconds between two looks."),
)


def agent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what every command that starts an agent takes: runtime_dir, spool_dir, metadata_endpoint, poll_interval."""
    for option in reversed(_AGENT_OPTIONS):
        command = option(command)
    return command


@click.command(
    epilog="""\b
Example:
  spotckpt agent --spool-quota 20GB --upload-limit 50MB/s
"""
)
@agent_options
@click.option("--stop-grace", type=float, default=90.0, show_default=True, help="Seconds for uploads after SIGTERM.")
@output.log_format_option
@click.option("--upload-limit", default="", help="The most that all runs together upload, as 20MB/s.")
@click.option("--spool-quota", default="", help="The most that all runs together may stage, as 20GB.")
@click.option(
    "--lifecycle-hook", default="", help="Complete it once all is committed.  [default: by the instance's tag]"
)
@click.option("--auto-scaling-group", default="", help="Whose hook that is.  [default: by the instance's tag]")
@click.option("--verbose", is_flag=True, help="Log more.")
def agent(
    runtime_dir: Path | None,
    spool_dir: Path | None,
    *,
    metadata_endpoint: str,
    poll_interval: float,
    stop_grace: float,
    log_format: LogFormat,
    upload_limit: str,
    spool_quota: str,
    lifecycle_hook: str,
    auto_scaling_group: str,
    verbose: bool,
) -> NoReturn:
    """Run the agent in the foreground.

    It uploads what trainers of this user stage, watches for interruption notices, and keeps the runs' claims. Trainers
    find it by its socket; without one they start an agent of their own. SIGTERM finishes uploads and ends it.
    """
    from spotckpt.agent import paths, service
    from spotckpt.agent.log import log_to_stderr
    from spotckpt.agent.options import ALREADY_RUNNING, AgentOptions, limits

    options = AgentOptions(
        runtime_dir=runtime_dir or paths.runtime_dir(),
        spool_dir=spool_dir or paths.spool_dir(),
        metadata_endpoint=metadata_endpoint,
        poll_interval_s=poll_interval,
        stop_grace_s=stop_grace,
        log_format=log_format,
        **limits(upload_limit, spool_quota),
        lifecycle_hook=lifecycle_hook,
        auto_scaling_group=auto_scaling_group,
    )
    log_to_stderr(log_format, verbose=verbose)
    ended = service.run(options)
    if ended == ALREADY_RUNNING:
        held = " or ".join(dict.fromkeys((str(options.runtime_dir), str(options.spool_dir))))
        click.echo(f"spotckpt: error: another agent holds {held}; see: spotckpt status", err=True)
    logging.shutdown()
    os._exit(ended)  # a thread that waits for a store that does not answer must not keep an agent that has finished


@click.command(
    epilog="""\b
Example:
  spotckpt status
"""
)
@_runtime_dir
@output.json_option
def status(runtime_dir: Path | None, as_json: bool) -> None:
    """Show what the agent of this machine is doing.

    Its runs, what is staged and being uploaded, the last committed snapshot of each, and notices in force.
    """
    reply = _ask(runtime_dir, "status")
    answer = {name: reply[name] for name in ("agent", "notices", "runs")}
    if as_json:
        output.emit(answer)
        return
    from spotckpt.agent.systemd import notice_text

    _show_agent(answer["agent"])
    for notice in answer["notices"]:
        output.emit_line(f"notice: {notice_text(notice)}", style="bold yellow")
    for run in answer["runs"]:
        _show_run(run)
    if not answer["runs"]:
        output.emit_line("no run is open")


@click.command(
    epilog="""\b
Examples:
  spotckpt notify terminate --in 120
  spotckpt notify --clear
"""
)
@click.argument(
    "action",
    metavar="[ACTION]",
    type=click.Choice(["terminate", "stop", "hibernate", "rebalance"]),
    default="terminate",
)
@click.option(
    "--in", "in_s", type=click.FloatRange(min=0), help="Seconds until the machine goes; unknown if not given."
)
@click.option("--clear", is_flag=True, help="Take back the notices given by hand.")
@_runtime_dir
def notify(action: str, in_s: float | None, clear: bool, runtime_dir: Path | None) -> None:
    """Tell the agent by hand that the machine will go.

    ACTION is terminate (the default), stop, hibernate or rebalance. Every trainer of the agent saves and, but for a
    rebalance, leaves: at once, or with --in as late as it can still be saved. None starts while the notice is in force,
    which ends 5 minutes after its time, or by --clear.
    """
    if clear:
        _ask(runtime_dir, "notify", clear=True)
        output.emit_line("notices given by hand are cleared")
        return
    _ask(runtime_dir, "notify", action=action, in_s=in_s)
    when = "" if in_s is None else f" in {in_s:g} s"
    output.emit_line(f"the agent tells its trainers: {action}{when}; take it back with: spotckpt notify --clear")


def _ask(runtime_dir: Path | None, op: str, **fields: Any) -> Mapping[str, Any]:
    from spotckpt.agent import paths
    from spotckpt.agent.client import Client

    with Client.connect(paths.socket_path(runtime_dir or paths.runtime_dir()), timeout=_TIMEOUT_S) as client:
        return client.call(op, timeout=_TIMEOUT_S, **fields)


def _show_agent(found: Mapping[str, Any]) -> None:
    kind = "private agent" if found["private"] else "agent"
    where = f" on {found['instance']}" if found["instance"] else ""
    output.emit_line(f"{kind} {found['pid']}{where}, spool {found['spool_dir']}", style="bold")


def _show_run(run: Mapping[str, Any]) -> None:
    output.emit_line()
    output.emit_line(run["uri"], style="bold cyan")
    slots = Counter(slot["state"] for slot in run["slots"])
    pairs = [
        ("attempt", f"{run['attempt']}, {run['state']}"),
        ("trainer", f"process {run['trainer_pid']}" if run["trainer_pid"] else "none"),
        ("slots", ", ".join(f"{count} {state}" for state, count in slots.items()) or "none"),
        ("uploading", _uploading(run["uploading"])),
        ("last committed", run["last_committed"] or "nothing yet"),
        ("not committed yet", _work(run["unsaved"])),
    ]
    if run["lost"]:
        pairs.append(("last interruption cost", _work(run["lost"])))
    if error := run["error"]:
        pairs.append(("error", "; ".join(filter(None, (error.get("message"), error.get("hint"))))))
    output.emit_pairs(pairs)


def _work(lost: Mapping[str, Any] | None) -> str:
    return "no step was taken" if lost is None else f"{lost['steps']} steps, {lost['seconds']:.0f} s"


def _uploading(upload: Mapping[str, Any] | None) -> str:
    if not upload:
        return "nothing"
    return f"{upload['id']}, {size_text(upload['sent_bytes'])} of {size_text(upload['total_bytes'])}"
