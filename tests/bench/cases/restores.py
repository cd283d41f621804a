"""From the bucket into the training, against raw ranged reads and peers."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.bench import BY_HAND, CLIENTS, RAW, Bench, Found, Row
from tests.bench.measure import Meter, Sample, interleaved
from tests.support.servers import S3Env

PEERS = {
    "torch.load through s3fs": ("torch_save_s3fs", "torch_load_s3fs"),
    "boto3 + torch.load": ("torch_save_boto3", "torch_load_boto3"),
    "DCP FsspecReader": ("dcp_save", "dcp_load"),
}
NO_TARGET = {"boto3 + torch.load"}
NEVER_BEST = {"awscrt"}  # it hands each chunk to Python


def restore(bench: Bench) -> Found:
    """From a server that sends files without reading them."""
    server = bench.keeping
    before = bench.keeping_server.stats()
    found = _restore(bench, server, "keeps")
    found.remarks.append(bench.keeping_server.cost_since(before))
    return found


def restore_seaweed(bench: Bench) -> Found:
    """From SeaweedFS; no figures."""
    return Found(_restore(bench, bench.seaweed, "SeaweedFS").rows)


def _restore(bench: Bench, server: S3Env, place: str) -> Found:
    # another agent than the one that saved: its spool does not hold the snapshot
    peers = {name: methods for name, methods in PEERS.items() if not (bench.quick and name in NO_TARGET)}
    clients = [name for name in CLIENTS if not (bench.quick and name in NEVER_BEST)]
    with bench.agent() as elsewhere, bench.saving(server) as ours:
        worker = ours.worker
        worker.call("open", ours.uri, **BY_HAND)
        size_bytes = worker.call("size_bytes")
        ours.snapshot()
        worker.call("close")  # and its slots are free
        for put, _ in peers.values():
            worker.call("peer", put, f"s3://{server.bucket}/{put}")
        raw = bench.worker(RAW, str(bench.memory / "raw"), size_bytes, server.bucket, environment=server.environment)
        with raw:
            raw.call("put", clients[0])
            for client in clients:
                if not bench.quick and not raw.call("right", client):
                    raise AssertionError(f"raw {client} does not give back what it was given")
            worker.call("use", elsewhere.environment)

            def resuming() -> Sample:
                worker.call("renew", stepped=False)
                meter = Meter(worker.pid, elsewhere.pid)
                sample = meter.read(worker.call("open", ours.uri, **BY_HAND))
                if worker.call("resumed_from") is None:
                    raise AssertionError("nothing was restored")
                worker.call("close")
                return sample

            def loading(put: str, get: str) -> Callable[[], Sample]:
                def load() -> Sample:
                    worker.call("renew", stepped=False)
                    return ours.timed("peer", get, f"s3://{server.bucket}/{put}")

                return load

            def reading(client: str) -> Callable[[], Sample]:
                return lambda: Meter(raw.pid).read(raw.call("get", client))

            series = interleaved(
                {
                    "spotckpt": resuming,
                    **{f"raw {client}": reading(client) for client in clients},
                    **{what: loading(*methods) for what, methods in peers.items()},
                },
                bench.repeats,
            )
    rows = [Row("restore", what, samples, place, size_bytes) for what, samples in series.items()]
    ours_s = series["spotckpt"].wall.median
    return Found(
        rows,
        {
            "restore": min(series[f"raw {client}"].wall.median for client in clients) / ours_s,
            "restore-s3fs": series["torch.load through s3fs"].wall.median / ours_s,
            "restore-dcp": series["DCP FsspecReader"].wall.median / ours_s,
        },
    )
