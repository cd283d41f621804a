"""Processes that are forks of one with torch imported, for all tests alike.

Python has one fork server to a process, and whoever says last what that imports has said it for everybody.
"""

from __future__ import annotations

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["tests.training.forked", "spotckpt.moving.push", "spotckpt.moving.files", "tests.moving.processes"]
)
