"""The agent when nothing happens: until it answers, its memory, its share of a core."""

from __future__ import annotations

import time

from tests.bench.bench import Bench, Found, Row
from tests.bench.measure import Meter, Sample, Series, memory_bytes

SETTLED_S = 1.0


def agent(bench: Bench) -> Found:
    """Starts some, and watches the last one poll a metadata server every second."""
    ready, idle = Series(), Series()
    for number in range(bench.repeats):
        with bench.agent() as started:
            meter = Meter(started.pid)
            ready.append(Sample(started.ready_s, meter.read().cpu_s))
            if number == bench.repeats - 1:
                time.sleep(SETTLED_S)
                resident = memory_bytes(started.pid, "VmRSS")
                for _ in range(bench.repeats):
                    meter = Meter(started.pid)
                    time.sleep(1.0 if bench.quick else 5.0)
                    idle.append(meter.read())
    share = 100 * sum(sample.cpu_s for sample in idle) / sum(sample.wall_s for sample in idle)
    rows = [Row("agent", "until it answers", ready), Row("agent", "idle, a poll each second", idle)]
    return Found(rows, {"agent-memory": resident / 1e6, "agent-cpu": share, "agent-ready": ready.wall.median})
