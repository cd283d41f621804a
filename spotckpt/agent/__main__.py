"""`python -m spotckpt.agent`: the agent in the foreground, or with `--detach` in the background."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from spotckpt.agent import paths, service
from spotckpt.agent.log import LOG_FORMATS, log_to_stderr
from spotckpt.agent.options import AgentOptions, limits
from spotckpt.errors import SpotckptError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spotckpt.agent", description="The agent of spotckpt.")
    parser.add_argument("--private", action="store_true", help="end when idle")
    parser.add_argument("--detach", action="store_true", help="go on in the background once the socket listens")
    parser.add_argument("--runtime-dir", type=Path, default=paths.runtime_dir(), help="socket and lock")
    parser.add_argument("--spool-dir", type=Path, default=paths.spool_dir(), help="where snapshots are staged")
    parser.add_argument("--disk-dir", type=Path, default=paths.disk_dir(), help="where they go if memory is short")
    parser.add_argument("--metadata-endpoint", default="", help="EC2 metadata service, as http://HOST:PORT")
    parser.add_argument("--poll-interval", type=float, default=5.0, help="seconds between looks for a notice")
    parser.add_argument("--idle-exit", type=float, default=30.0, help="seconds after which a private agent ends")
    parser.add_argument("--stop-grace", type=float, default=90.0, help="seconds to finish after SIGTERM")
    parser.add_argument("--slots", type=int, default=3, help="snapshots of a run in the spool at once")
    parser.add_argument("--reserve-mb", type=int, default=512, help="memory that staging leaves free")
    parser.add_argument("--log-format", choices=LOG_FORMATS, default="key=value", help="how a line is written")
    parser.add_argument("--upload-limit", default="", help="of all runs together, as 20MB/s")
    parser.add_argument("--spool-quota", default="", help="of all runs together, as 20GB")
    parser.add_argument("--verbose", action="store_true", help="log more")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and serves; returns the exit status."""
    given = _parser().parse_args(arguments)
    log_to_stderr(given.log_format, verbose=given.verbose)
    try:
        options = AgentOptions(
            private=given.private,
            detach=given.detach,
            runtime_dir=given.runtime_dir,
            spool_dir=given.spool_dir,
            disk_dir=given.disk_dir,
            metadata_endpoint=given.metadata_endpoint,
            poll_interval_s=given.poll_interval,
            idle_exit_s=given.idle_exit,
            stop_grace_s=given.stop_grace,
            slots=given.slots,
            reserve_bytes=given.reserve_mb << 20,
            log_format=given.log_format,
            **limits(given.upload_limit, given.spool_quota),
        )
        return service.run(options)
    except SpotckptError as error:
        logging.getLogger("spotckpt.agent").error("%s", error)
        return error.exit_status


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # threads that wait for a store that does not answer must not keep an agent that has finished
    sys.stdout.flush()
    os._exit(status)
