"""`spotckpt agent`, `status` and `notify`: the agent of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from spotckpt.cli import output

_TIMEOUT_S = 10.0

_runtime_dir = click.option(
    "--runtime-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the agent's socket is.  [default: SPOTCKPT_RUNTIME_DIR, or by user id]",
)


@click.command()
@_runtime_dir
@click.option(
    "--spool-dir",
    "--spool",
    "spool_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where snapshots are staged.  [default: SPOTCKPT_SPOOL, or in /dev/shm by user id]",
)
@click.option("--metadata-endpoint", default="", help="Ask here for notices instead of EC2's own address.")
@click.option("--poll-interval", type=float, default=5.0, show_default=True, help="Seconds between two looks.")
@click.option("--stop-grace", type=float, default=90.0, show_default=True, help="Seconds for uploads after SIGTERM.")
def agent(
    runtime_dir: Path | None, spool_dir: Path | None, metadata_endpoint: str, poll_interval: float, stop_grace: float
) -> int:
    """Run the agent in the foreground.

    It uploads what trainers of this user stage, watches for interruption notices, and keeps the runs' claims. Trainers
    find it by its socket; without one they start an agent of their own. SIGTERM finishes uploads and ends it.
    """
    from spotckpt.agent import paths
    from spotckpt.agent.options import AgentOptions
    from spotckpt.agent.service import run

    options = AgentOptions(
        runtime_dir=runtime_dir or paths.runtime_dir(),
        spool_dir=spool_dir or paths.spool_dir(),
        metadata_endpoint=metadata_endpoint,
        poll_interval_s=poll_interval,
        stop_grace_s=stop_grace,
    )
    return run(options)


@click.command()
@_runtime_dir
@output.json_option
def status(runtime_dir: Path | None, as_json: bool) -> None:
    """Show what the agent of this machine is doing.

    Its runs, what is staged and being uploaded, the last committed snapshot of each, and notices in force.
    """
    reply = _ask(runtime_dir, "status")
    answer = {name: value for name, value in reply.items() if name not in ("id", "ok")}
    if as_json:
        output.emit(answer)
        return
    _show_agent(answer.get("agent", {}))
    for notice in answer.get("notices", []):
        output.emit_line(f"notice: {_notice(notice)}", style="bold yellow")
    _show_runs(answer.get("runs", []))


@click.command()
@click.argument("action", type=click.Choice(["terminate", "stop", "hibernate", "rebalance"]), default="terminate")
@click.option(
    "--in", "in_s", type=click.FloatRange(min=0), help="Seconds until the machine goes; unknown if not given."
)
@click.option("--clear", is_flag=True, help="Take back the notices given by hand.")
@_runtime_dir
def notify(action: str, in_s: float | None, clear: bool, runtime_dir: Path | None) -> None:
    """Tell the agent by hand that the machine will go.

    ACTION is terminate (the default), stop, hibernate or rebalance. Every trainer of the agent saves and, but for a
    rebalance, leaves; none starts while the notice is in force.
    """
    if clear:
        _ask(runtime_dir, "notify", clear=True)
        output.emit_line("notices given by hand are cleared")
        return
    _ask(runtime_dir, "notify", action=action, in_s=in_s)
    output.emit_line(f"the agent knows: {action}" + ("" if in_s is None else f" in {in_s:g} s"))


def _ask(runtime_dir: Path | None, op: str, **fields: Any) -> Mapping[str, Any]:
    from spotckpt.agent import paths
    from spotckpt.agent.client import Client

    with Client.connect(paths.socket_path(runtime_dir or paths.runtime_dir()), timeout=_TIMEOUT_S) as client:
        return client.call(op, timeout=_TIMEOUT_S, **fields)


def _show_agent(found: Mapping[str, Any]) -> None:
    kind = "private agent" if found.get("private") else "agent"
    output.emit_line(f"{kind} {found.get('pid', '?')}, version {found.get('version', '?')}", style="bold")


def _notice(notice: Mapping[str, Any]) -> str:
    left = notice.get("seconds_left")
    return f"{notice.get('kind')} {notice.get('action')}" + ("" if left is None else f" in {left:.0f} s")


def _show_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    if not runs:
        output.emit_line("no run is open")
        return
    columns = ("RUN", "ATTEMPT", "STATE", "TRAINER", "UPLOADING", "LAST COMMITTED")
    rows = [
        (
            str(run.get("uri", "")),
            str(run.get("attempt", "")),
            str(run.get("state", "")),
            str(run.get("trainer_pid") or "-"),
            _uploading(run.get("uploading")),
            str(run.get("last_committed") or "-"),
        )
        for run in runs
    ]
    output.emit_table(output.table(columns, rows, right=("ATTEMPT", "TRAINER"), elastic="RUN"))
    for run in runs:
        if run.get("error"):
            output.emit_line(f"{run.get('uri')}: {run['error']}", style="bold red")


def _uploading(upload: Mapping[str, Any] | None) -> str:
    if not upload:
        return "-"
    sent, total = upload.get("sent_bytes", upload.get("sent", 0)), upload.get("total_bytes", upload.get("total", 0))
    return f"{output.size(sent)} of {output.size(total)}"
