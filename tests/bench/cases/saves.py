"""One snapshot from the boundary to the commit, against copies, raw clients and peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.bench.bench import BY_HAND, CLIENTS, RAW, Bench, Found, Row, Saving
from tests.bench.measure import Meter, Sample, Series, interleaved
from tests.bench.worker import Worker
from tests.support.servers import S3Env

PEERS = {
    "DCP FsspecWriter": "dcp_save",
    "torch.save + boto3": "torch_save_boto3",
    "torch.save into s3fs": "torch_save_s3fs",
}
NO_TARGET = {"torch.save into s3fs"}
SLOTS = 3
_RAW = {f"raw {client}": client for client in CLIENTS}


def blocked(bench: Bench) -> Found:
    """How long the trainer stands still, against a plain copy."""
    with bench.saving(bench.discarding, size_bytes=bench.copied_bytes) as ours:
        size_bytes = ours.worker.call("size_bytes")
        _warmed(ours)
        series = interleaved({"plain copy": ours.copy, "spotckpt": ours.snapshot}, bench.repeats)
    rows = [Row("trainer blocked", what, samples, "", size_bytes) for what, samples in series.items()]
    return Found(rows, {"blocked": series["spotckpt"].wall.median / series["plain copy"].wall.median})


def save(bench: Bench) -> Found:
    """On the discarding server."""
    server = bench.discarding
    before = bench.discarding_server.stats()
    found = _save(bench, server, "discards")
    found.remarks.append(bench.discarding_server.cost_since(before))
    return found


def save_seaweed(bench: Bench) -> Found:
    """On SeaweedFS: no figures, since the server takes most of the time."""
    found = _save(bench, bench.seaweed, "SeaweedFS")
    return Found(found.rows)


def _save(bench: Bench, server: S3Env, place: str) -> Found:
    with bench.saving(server) as ours:
        size_bytes = ours.worker.call("size_bytes")
        grown = _warmed(ours)
        with bench.worker(
            RAW, str(bench.memory / "raw"), size_bytes, server.bucket, environment=server.environment
        ) as raw:
            series = interleaved(_contenders(bench, ours, raw, server.bucket), bench.repeats)
    rows = [
        Row("sealed in", "spotckpt", series.pop("spotckpt"), "", size_bytes),
        Row("sealed → committed", "spotckpt", ours.upload, place, size_bytes),
        *(Row("sealed → committed", what, series.pop(what), place, size_bytes) for what in _RAW),
        Row("whole save", "spotckpt", ours.whole, place, size_bytes),
        *(Row("whole save", what, samples, place, size_bytes) for what, samples in series.items()),
    ]
    return Found(rows, _figures({(row.case, row.what): row.series for row in rows}, grown, size_bytes))


def _warmed(ours: Saving) -> int:
    """Opens the run and fills every slot once; by how many bytes the trainer's own memory grew by this."""
    ours.worker.call("open", ours.uri, **BY_HAND)
    before = ours.worker.call("anonymous_bytes")
    for _ in range(SLOTS):
        ours.snapshot()
    ours.upload.clear()
    ours.whole.clear()
    return max(0, int(ours.worker.call("anonymous_bytes")) - int(before))


def _contenders(bench: Bench, ours: Saving, raw: Worker, bucket: str) -> dict[str, Callable[[], Sample]]:
    def sending(client: str) -> Callable[[], Sample]:
        return lambda: Meter(raw.pid).read(raw.call("put", client))

    def saving(method: str) -> Callable[[], Sample]:
        return lambda: ours.timed("peer", method, f"s3://{bucket}/{method}")

    return {
        "spotckpt": ours.snapshot,
        **{what: sending(client) for what, client in _RAW.items()},
        **{what: saving(method) for what, method in PEERS.items() if not (bench.quick and what in NO_TARGET)},
    }


def _figures(found: Mapping[tuple[str, str], Series], grown: int, size_bytes: int) -> dict[str, float]:
    upload = found["sealed → committed", "spotckpt"]
    best = min((found["sealed → committed", what] for what in _RAW), key=lambda series: series.wall.median)
    save_cpu_s = found["whole save", "spotckpt"].cpu.median
    return {
        "upload": best.wall.median / upload.wall.median,
        "upload-cpu": upload.cpu.median / best.cpu.median,
        "save-cpu-dcp": save_cpu_s / found["whole save", "DCP FsspecWriter"].cpu.median,
        "save-cpu-boto3": save_cpu_s / found["whole save", "torch.save + boto3"].cpu.median,
        "trainer-memory": (grown + found["sealed in", "spotckpt"].extra.median) / size_bytes,
    }


def first(bench: Bench) -> Found:
    """The first snapshot of a run, whose slots are new, after a while of training; and later ones."""
    with bench.saving(bench.discarding) as ours:

        def begin() -> Sample:
            ours.uri = f"s3://{bench.discarding.bucket}/{bench.new_name('run')}"
            ours.worker.call("open", ours.uri, **BY_HAND)
            ours.worker.call("train_for", 10.0)
            sample = ours.snapshot()
            for _ in range(SLOTS):
                ours.snapshot()
            return sample

        series = interleaved({"first": begin, "warm": ours.snapshot}, bench.repeats)
        size_bytes = ours.worker.call("size_bytes")
    rows = [Row("first snapshot", what, samples, "", size_bytes) for what, samples in series.items()]
    return Found(rows, {"first": series["first"].wall.median / series["warm"].wall.median})
