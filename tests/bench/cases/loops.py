"""What a snapshot adds to the wall time of a training loop: steps with snapshots less the same steps without."""

from __future__ import annotations

import statistics
from pathlib import Path

from tests.bench.bench import MIB, Bench, Found, Row, Saving
from tests.bench.measure import Sample, Series, interleaved

MANY = 6
"""Steps of a block: enough for an upload to be over."""
ROUNDS = 12
"""A step is short and its time scatters by more than a copy takes: so many times as many."""


def staged(bench: Bench) -> Found:
    """Staging alone, every core busy."""
    with bench.saving(bench.discarding, size_bytes=bench.copied_bytes) as ours:
        return _staged(bench, ours, "added by staging", "added")


def overlapped(bench: Bench) -> Found:
    """Staging beside forward and backward that last twice as long as the copy and leave one core free."""
    if bench.cores < 2:
        return Found(remarks=["overlapped: one core only"])
    with bench.saving(bench.discarding, size_bytes=bench.copied_bytes) as ours:
        ours.worker.call("threads", bench.cores - 1)
        ours.worker.call("compute_for", 2 * statistics.median(ours.worker.call("copy") for _ in range(5)))
        found = _staged(bench, ours, "added, overlapped", "overlapped", bare=True)
        bare = next(row.series for row in found.rows if row.what == "added by a bare thread").wall.median
        copy = next(row.series for row in found.rows if row.what == "plain copy").wall.median
        found.remarks.append(
            f"overlapped: a bare thread that copies and does nothing else adds {bare / copy:.2f} ÷ copy"
        )
        return found


def gpu(bench: Bench) -> Found:
    """Staging from a GPU."""
    if not Path("/dev/nvidiactl").exists():
        return Found(remarks=["gpu: there is none here"])
    with bench.saving(bench.discarding, device="cuda") as ours:
        ours.worker.call("compute_for", 2 * ours.worker.call("copy"))
        return _staged(bench, ours, "added, GPU", "gpu", peer=True)


def _staged(bench: Bench, ours: Saving, case: str, figure: str, *, peer: bool = False, bare: bool = False) -> Found:
    worker = ours.worker
    worker.call("open", ours.uri, every="1 steps", upload_every="1h")
    worker.call("steps", 4, boundaries=True)  # every slot is touched
    ours.agent.wait_idle(ours.uri)
    contenders = {
        "plain copy": ours.copy,
        "without": lambda: ours.timed("steps", 1, boundaries=False),
        "with spotckpt": lambda: ours.timed("steps", 1, boundaries=True),
    }
    if peer:
        contenders["with dcp.async_save"] = lambda: ours.timed(
            "async_steps", 1, f"s3://{bench.discarding.bucket}/async"
        )
    if bare:
        contenders["with a bare thread"] = lambda: ours.timed("step_beside_copy")
    series = interleaved(contenders, ROUNDS * bench.repeats)
    added = {"added": _difference(series["with spotckpt"], series["without"])}
    if bare:
        added["added by a bare thread"] = _difference(series["with a bare thread"], series["without"])
    rows = [Row(case, what, samples) for what, samples in {**series, **added}.items()]
    return Found(rows, {figure: max(0.0, added["added"].wall.median) / series["plain copy"].wall.median})


def uploaded(bench: Bench) -> Found:
    """Staging and upload, every core busy, against `dcp.async_save`."""
    with bench.saving(bench.discarding) as ours:
        worker = ours.worker
        worker.call("open", ours.uri, every=f"{MANY} steps")

        def with_snapshots() -> Sample:
            before = ours.agent.committed(ours.uri)
            sample = ours.timed("steps", MANY, boundaries=True)
            ours.agent.wait_committed(ours.uri, after=before)
            return sample

        worker.call("steps", MANY - 1, boundaries=True)
        with_snapshots()
        worker.call("async_steps", 1, f"s3://{bench.discarding.bucket}/async")
        series = interleaved(
            {
                "without": lambda: ours.timed("steps", MANY, boundaries=False),
                "with spotckpt": with_snapshots,
                "with dcp.async_save": lambda: ours.timed("async_steps", MANY, f"s3://{bench.discarding.bucket}/async"),
            },
            bench.repeats,
        )
    without = series["without"]
    added = _difference(series["with spotckpt"], without)
    peer = _difference(series["with dcp.async_save"], without)
    named = {**series, "added by spotckpt": added, "added by dcp.async_save": peer}
    rows = [Row("added with upload", what, samples, "discards") for what, samples in named.items()]
    return Found(rows, {"added-dcp": max(0.0, added.wall.median) / max(1e-9, peer.wall.median)})


def throughput(bench: Bench) -> Found:
    """Steps of 50 ms, staged every 30 s and uploaded every 2 min: state and times a fifteenth of it."""
    scale = 15
    with bench.saving(bench.discarding, size_bytes=1024 * MIB // scale) as ours:
        worker = ours.worker
        worker.call("compute_for", 0.045)
        ours.uri += "-long"
        worker.call("open", ours.uri, every=30.0 / scale, upload_every=120.0 / scale)
        steps = round(240 / scale / 0.05)
        series = interleaved(
            {
                "without": lambda: ours.timed("steps", steps, boundaries=False),
                "with spotckpt": lambda: ours.timed("steps", steps, boundaries=True),
            },
            bench.repeats,
        )
    added = _difference(series["with spotckpt"], series["without"])
    lost = 100 * added.wall.median / series["without"].wall.median
    rows = [Row("throughput", what, samples) for what, samples in {**series, "added": added}.items()]
    return Found(rows, {"throughput": max(0.0, lost)})


def _difference(with_it: Series, without: Series) -> Series:
    """Round by round: what disturbs both falls out."""
    pairs = zip(with_it, without, strict=True)
    return Series(Sample(one.wall_s - other.wall_s, one.cpu_s - other.cpu_s) for one, other in pairs)
