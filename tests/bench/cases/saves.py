"""One snapshot from the boundary to the commit, against copies, raw clients and peers."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.bench import BY_HAND, CLIENTS, RAW, Bench, Found, Row
from tests.bench.measure import Meter, Sample, interleaved
from tests.support.servers import S3Env

PEERS = {
    "DCP FsspecWriter": "dcp_save",
    "torch.save + boto3": "torch_save_boto3",
    "torch.save into s3fs": "torch_save_s3fs",
}
NO_TARGET = {"torch.save into s3fs"}
SLOTS = 3


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
    peers = {name: method for name, method in PEERS.items() if not (bench.quick and name in NO_TARGET)}
    with bench.saving(server) as ours:
        worker = ours.worker
        size_bytes = worker.call("size_bytes")
        worker.call("open", ours.uri, **BY_HAND)
        anonymous = worker.call("anonymous_bytes")
        for _ in range(SLOTS):
            ours.snapshot()
        grown = worker.call("anonymous_bytes") - anonymous
        ours.upload.clear()
        ours.whole.clear()
        with bench.worker(
            RAW, str(bench.memory / "raw"), size_bytes, server.bucket, environment=server.environment
        ) as raw:

            def sending(client: str) -> Callable[[], Sample]:
                return lambda: Meter(raw.pid).read(raw.call("put", client))

            def saving(method: str) -> Callable[[], Sample]:
                return lambda: ours.timed("peer", method, f"s3://{server.bucket}/{method}")

            series = interleaved(
                {
                    "plain copy": ours.copy,
                    "spotckpt": ours.snapshot,
                    **{f"raw {client}": sending(client) for client in CLIENTS},
                    **{what: saving(method) for what, method in peers.items()},
                },
                bench.repeats,
            )
    blocked = series.pop("spotckpt")
    rows = [
        Row("trainer blocked", "plain copy", series.pop("plain copy"), "", size_bytes),
        Row("trainer blocked", "spotckpt", blocked, "", size_bytes),
        Row("sealed → committed", "spotckpt", ours.upload, place, size_bytes),
    ]
    rows += [Row("sealed → committed", f"raw {name}", series.pop(f"raw {name}"), place, size_bytes) for name in CLIENTS]
    rows += [Row("whole save", "spotckpt", ours.whole, place, size_bytes)]
    rows += [Row("whole save", name, samples, place, size_bytes) for name, samples in series.items()]
    best = min((row for row in rows if row.what.startswith("raw")), key=lambda row: row.series.wall.median).series
    figures = {
        "blocked": blocked.wall.median / rows[0].series.wall.median,
        "upload": best.wall.median / ours.upload.wall.median,
        "upload-cpu": ours.upload.cpu.median / best.cpu.median,
        "save-cpu-dcp": ours.whole.cpu.median / series["DCP FsspecWriter"].cpu.median,
        "save-cpu-boto3": ours.whole.cpu.median / series["torch.save + boto3"].cpu.median,
        "trainer-memory": (max(0, grown) + blocked.extra.median) / size_bytes,
    }
    return Found(rows, figures)


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
