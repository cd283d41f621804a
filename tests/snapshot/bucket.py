"""Small runs in a real store, for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spotckpt.deadline import Deadline
from spotckpt.snapshot.attempts import claim, ensure_run, write_base, write_heartbeat
from spotckpt.snapshot.catalog import Catalog
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.metrics import History
from spotckpt.snapshot.pack import TensorSpec, layout
from spotckpt.snapshot.records import Base, Claim, Heartbeat, Holder
from spotckpt.snapshot.save import commit, upload
from spotckpt.snapshot.staged import Staged
from spotckpt.snapshot.tree import ARRAY_DTYPES, encode
from spotckpt.store.base import Progress, Reading, Span, Stat, Store
from spotckpt.store.open import open_store


def local_store(root: Path) -> Store:
    return open_store(f"file://{root}")


class FakeClock:
    """Time that passes only in `sleep`; `on_sleep` is what others do meanwhile."""

    def __init__(self, *, wall: float = 1_700_000_000.0) -> None:
        self.time = 1000.0
        self.wall_time = wall
        self.on_sleep: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.wall_time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        assert self.time < 5000.0, "this waits for ever"
        self.wall_time += seconds
        self.on_sleep()


class Wrapped(Store):
    """A Store that passes everything on; tests override one verb."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.uri = inner.uri

    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        self.inner.create(key, data, deadline=deadline)

    def put(
        self,
        key: str,
        data: Sequence[bytes | bytearray | memoryview],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        reading: Reading | None = None,
    ) -> Stat:
        return self.inner.put(key, data, deadline=deadline, progress=progress, reading=reading)

    def read(self, key: str, *, limit_bytes: int, deadline: Deadline | None = None) -> bytes:
        return self.inner.read(key, limit_bytes=limit_bytes, deadline=deadline)

    def read_into(self, key: str, spans: Sequence[Span], **options: Any) -> None:
        self.inner.read_into(key, spans, **options)

    def list(self, prefix: str, *, deadline: Deadline | None = None) -> list[Stat]:
        return self.inner.list(prefix, deadline=deadline)

    def stat(self, key: str, *, deadline: Deadline | None = None) -> Stat:
        return self.inner.stat(key, deadline=deadline)

    def delete(self, keys: Iterable[str], *, deadline: Deadline | None = None) -> None:
        self.inner.delete(keys, deadline=deadline)


def staged(
    snapshot: SnapshotId,
    arrays: Mapping[str, np.ndarray],
    *,
    extra: object = None,
    history: History | None = None,
    **fields: Any,
) -> tuple[Staged, memoryview]:
    """A snapshot of named arrays and metrics as a trainer would hand it over, with its bytes."""
    history = History() if history is None else history
    rows = history.stage()
    history.staged(str(snapshot))
    names = list(arrays)
    given = tuple(TensorSpec(name, ARRAY_DTYPES[arrays[name].dtype.str], arrays[name].shape) for name in names)
    place = layout(given)
    data = bytearray(place.data_bytes + rows.size_bytes)
    history.rows.copy(rows, memoryview(data)[place.data_bytes :])
    for name, offset in zip(names, place.offsets, strict=True):
        body = np.ascontiguousarray(arrays[name]).tobytes()
        data[offset : offset + len(body)] = body
    tree = {
        "objects": {"model": {name: {"$tensor": index} for index, name in enumerate(names)}},
        "run": encode(extra),
    }
    fields = {"epoch": 0, "reason": "periodic", "created": 1_700_000_000.0, **fields}
    made = Staged(
        id=str(snapshot),
        step=snapshot.step,
        tree=tree,
        specs=given,
        history=rows,
        data_bytes=place.data_bytes,
        **fields,
    )
    return made, memoryview(data)


def arrays_of(seed: int) -> dict[str, np.ndarray]:
    """What a little model might hold, told apart by the seed."""
    random = np.random.default_rng(seed)
    return {
        "weight": random.standard_normal((5, 3)).astype("<f4"),
        "step": np.array(seed, dtype="<i8"),
        "mask": random.integers(0, 2, (7,)).astype("|b1"),
        "none": np.zeros((0, 4), dtype="<f8"),
    }


def save(
    store: Store,
    snapshot: SnapshotId,
    *,
    seed: int | None = None,
    parent: SnapshotId | None = None,
    then_commit: bool = True,
    **fields: Any,
) -> Manifest:
    """Uploads and commits a snapshot whose contents follow from its step."""
    run = ensure_run(store)
    made, data = staged(snapshot, arrays_of(snapshot.step if seed is None else seed), **fields)
    manifest, _ = upload(store, made, data, run_id=run.run_id, parent=parent)
    if then_commit:
        commit(store, manifest)
    return manifest


def begin(
    store: Store,
    number: int,
    base: SnapshotId | None = None,
    *,
    selector: str = "newest",
    consumed: tuple[str, ...] = (),
    with_base: bool = True,
) -> None:
    """Claims an attempt and records its base, as the protocol does."""
    ensure_run(store)
    claim(store, number, Holder(host=f"host-{number}"), selector)
    if with_base:
        write_base(store, Base(number, str(base) if base else None, selector, consumed))


def beat(store: Store, number: int, *, last: SnapshotId | None = None, released: bool = False, count: int = 1) -> None:
    write_heartbeat(store, Heartbeat(number, count, 0.0, released, str(last) if last else None))


def sid(attempt: int, sequence: int, step: int | None = None, nonce: str = "00000000") -> SnapshotId:
    """An id; the step is ten times the sequence if it is not given."""
    return SnapshotId(attempt, sequence, 10 * sequence if step is None else step, nonce)


def catalog(
    snapshots: Iterable[SnapshotId],
    bases: Mapping[int, SnapshotId | tuple[SnapshotId | None, tuple[str, ...]] | None],
    selectors: Mapping[int, str] | None = None,
    **more: Any,
) -> Catalog:
    """A catalog for the table tests: `bases` as attempt → base or (base, consumed); every attempt is claimed."""
    selectors = dict(selectors or {})
    highest = max([0, *bases, *selectors])
    records = {}
    for number, base in bases.items():
        snapshot, consumed = base if isinstance(base, tuple) else (base, ())
        records[number] = Base(number, str(snapshot) if snapshot else None, "newest", consumed)
    claims = {
        number: Claim(number, "n", 0.0, Holder(), selectors.get(number, "newest")) for number in range(1, highest + 1)
    }
    given = {"highest": highest, "claims": claims, "bases": records, "snapshots": frozenset(snapshots)}
    return Catalog(**{**given, **more})


def said() -> tuple[list[str], Callable[[str], None]]:
    """A list and the `say` that fills it."""
    lines: list[str] = []
    return lines, lines.append


def raises_naming(kind: type[BaseException], *names: str) -> Any:
    """`pytest.raises`, where the message names all of these."""
    return pytest.raises(kind, match="".join(f"(?=.*{name})" for name in names))
