"""States of an unusual kind: most of it frozen, or in very many tensors."""

from __future__ import annotations

from tests.bench.bench import BY_HAND, MIB, Bench, Found, Row
from tests.bench.measure import Sample, Series, interleaved

LAYERS = 200
TRAINED = 3  # with their moments 4.4 % of the state


def frozen(bench: Bench) -> Found:
    """Bytes of the first and of the second upload of a model that is 95 % frozen."""
    uploads: list[float] = []
    times = Series()
    with bench.saving(
        bench.discarding, size_bytes=bench.size_bytes // 2, layers=LAYERS, frozen=1 - TRAINED / LAYERS
    ) as ours:
        ours.worker.call("open", ours.uri, **BY_HAND)
        for _ in range(2):
            before = bench.discarding_server.stats()["received_bytes"]
            ours.snapshot()
            uploads.append(bench.discarding_server.stats()["received_bytes"] - before)
        times.extend(ours.whole)
    rows = [Row("95 % frozen", "two saves", times, "discards")]
    remark = f"95 % frozen: {uploads[0] / 1e6:.1f} MB uploaded first, then {uploads[1] / 1e6:.1f} MB"
    return Found(rows, {"frozen": max(0.0, (uploads[1] - MIB) / uploads[0])}, [remark])


def many(bench: Bench) -> Found:
    """10,000 small tensors: the whole save, upload included, less a plain copy."""
    layers = 2500  # each a matrix, two moments and a counter
    with bench.saving(bench.discarding, size_bytes=layers * 3 * 1024, layers=layers) as ours:
        ours.worker.call("open", ours.uri, **BY_HAND)
        series = interleaved({"plain copy": ours.copy, "trainer blocked": ours.snapshot}, bench.repeats)
    rows = [Row("10,000 tensors", what, samples) for what, samples in series.items()]
    rows.append(Row("10,000 tensors", "whole save", ours.whole, "discards"))
    added = Series(
        Sample(whole.wall_s - copy.wall_s) for whole, copy in zip(ours.whole, series["plain copy"], strict=True)
    )
    return Found(rows, {"many": added.wall.median})
