"""From the bucket into the training, against raw ranged reads and peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.bench.bench import BY_HAND, CLIENTS, RAW, Bench, Found, Row, Saving
from tests.bench.measure import Meter, Sample, interleaved
from tests.bench.processes import Agent
from tests.bench.worker import Worker
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
    peers = {name: methods for name, methods in PEERS.items() if not (bench.quick and name in NO_TARGET)}
    clients = [name for name in CLIENTS if not (bench.quick and name in NEVER_BEST)]
    # another agent than the one that saved: its spool does not hold the snapshot
    with bench.agent() as elsewhere, bench.saving(server) as ours:
        size_bytes = ours.worker.call("size_bytes")
        _written(ours, [put for put, _ in peers.values()], server.bucket)
        ours.worker.call("use", elsewhere.environment)
        with bench.worker(
            RAW, str(bench.memory / "raw"), size_bytes, server.bucket, environment=server.environment
        ) as raw:
            raw.call("put", clients[0])
            for client in clients:
                if not bench.quick and not raw.call("right", client):
                    raise AssertionError(f"raw {client} does not give back what was put")
            series = interleaved(
                {
                    "spotckpt": lambda: _resumed(ours, elsewhere),
                    **{f"raw {client}": _reading(raw, client) for client in clients},
                    **{what: _loading(ours, *methods, server.bucket) for what, methods in peers.items()},
                },
                bench.repeats,
            )
    ours_s = series["spotckpt"].wall.median
    return Found(
        [Row("restore", what, samples, place, size_bytes) for what, samples in series.items()],
        {
            "restore": min(series[f"raw {client}"].wall.median for client in clients) / ours_s,
            "restore-s3fs": series["torch.load through s3fs"].wall.median / ours_s,
            "restore-dcp": series["DCP FsspecReader"].wall.median / ours_s,
        },
    )


def _written(ours: Saving, puts: Sequence[str], bucket: str) -> None:
    """One snapshot, and one checkpoint of each peer."""
    ours.worker.call("open", ours.uri, **BY_HAND)
    ours.snapshot()
    ours.worker.call("close")  # and its slots are free
    for put in puts:
        ours.worker.call("peer", put, f"s3://{bucket}/{put}")


def _resumed(ours: Saving, elsewhere: Agent) -> Sample:
    """A new training, opened and tracked until its state is there; the claim of the attempt is part of it."""
    ours.worker.call("renew", stepped=False)
    meter = Meter(ours.worker.pid, elsewhere.pid)
    sample = meter.read(ours.worker.call("open", ours.uri, **BY_HAND))
    if ours.worker.call("resumed_from") is None:
        raise AssertionError("nothing was restored")
    ours.worker.call("close")
    return sample


def _loading(ours: Saving, put: str, get: str, bucket: str) -> Callable[[], Sample]:
    def load() -> Sample:
        ours.worker.call("renew", stepped=False)
        return ours.timed("peer", get, f"s3://{bucket}/{put}")

    return load


def _reading(raw: Worker, client: str) -> Callable[[], Sample]:
    return lambda: Meter(raw.pid).read(raw.call("get", client))
