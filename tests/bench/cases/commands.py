"""The command line's start."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.bench.bench import Bench, Found, Row
from tests.bench.measure import Sample, interleaved


def command_line(bench: Bench) -> Found:
    """`spotckpt --help`, and Python alone."""

    def timed(*command: str) -> Sample:
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return Sample(time.perf_counter() - started)

    script = Path(sys.executable).with_name("spotckpt")
    series = interleaved(
        {
            "spotckpt --help": lambda: timed(str(script), "--help"),
            "python -c pass": lambda: timed(sys.executable, "-c", "pass"),
        },
        bench.repeats,
    )
    rows = [Row("command line", what, samples) for what, samples in series.items()]
    return Found(rows, {"help": series["spotckpt --help"].wall.median})
