"""Writes the golden run of a format. Run once per format, never again for one that was released:

python -m tests.snapshot.golden.make tests/snapshot/golden/format-1
"""

from __future__ import annotations

import struct
import sys
from collections import Counter, OrderedDict, deque
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from spotckpt.snapshot.attempts import claim, write_base, write_heartbeat
from spotckpt.snapshot.keys import RUN_KEY, SnapshotId
from spotckpt.snapshot.losses import Lost, Reached
from spotckpt.snapshot.metrics import Best, History
from spotckpt.snapshot.pack import ITEM_BYTES, TensorSpec, layout, stored_as
from spotckpt.snapshot.records import Base, Heartbeat, Holder, RunRecord
from spotckpt.snapshot.save import commit, upload
from spotckpt.snapshot.segments import RowsStaged
from spotckpt.snapshot.staged import Staged
from spotckpt.snapshot.tree import encode
from tests.snapshot.bucket import local_store

FIRST = SnapshotId(1, 0, 10, "0123abcd")
SECOND = SnapshotId(2, 0, 20, "89abcdef")
SHAPE = (2, 3)


def state() -> dict[str, Any]:
    """A value under every tag that needs no torch."""
    versions: Any = OrderedDict(weight=1)
    versions._metadata = OrderedDict([("", {"version": 2})])
    return {
        "plain": [None, True, 1, -(2**53), 1.5, -0.0, 1e300, "é\n", {"a": {}}],
        "int": 2**64 + 1,
        "float": [float("nan"), float("inf"), -float("inf")],
        "complex": complex(1.5, -0.0),
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"ab"),
        "tuple": (1, (2,)),
        "dict": {1: "a", "$b": (2,)},
        "ordered": versions,
        "counter": Counter(a=2),
        "deque": [deque([1, 2], maxlen=3), deque()],
        "set": {"b", "a"},
        "frozenset": frozenset({1}),
        "enum": HTTPStatus.NOT_FOUND,
        "dtype": np.dtype("<f4"),
        "scalar": np.float32(0.1),
        "array": np.arange(6, dtype="<i4").reshape(SHAPE),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(SHAPE)),
        "text": np.array(["a", "bc"]),
    }


NAN = struct.unpack(">d", bytes.fromhex("7ff80000deadbeef"))[0]
TABLE = np.arange(4, dtype="<i4").reshape(2, 2)


def metrics(step: int) -> History:
    """Numbers, values of another kind, steps of one's own and one logged again, as they are at that step."""
    history = History()
    for at in range(1, step + 1):
        value = {1: NAN, 2: float("-inf")}.get(at, 1 / at)
        history.log("train", {"loss": value}, step=at, epoch=at // 10)
        history.log("valid", {"top1": at / 64, "table": {"é": TABLE} if at % 2 else "none"}, step=at % 7, given=True)
        if at == FIRST.step:
            history.stage()
    return history


def raw(dtype: str) -> bytes:
    """The bytes of the golden tensor of that dtype and of `SHAPE`."""
    size = ITEM_BYTES[dtype] * 6
    return bytes(index % 2 for index in range(size)) if dtype == "BOOL" else bytes(range(size))


def staged(snapshot: SnapshotId) -> tuple[Staged, memoryview]:
    rows: list[tuple[str, str, tuple[int, ...], bytes]] = [
        (f"model/{dtype}", dtype, SHAPE, raw(dtype)) for dtype in ITEM_BYTES
    ]
    rows.append(("model/empty", "F32", (0, 4), b""))
    rows.append(("model/changes", "I64", (), snapshot.step.to_bytes(8, "little")))
    objects = {name.removeprefix("model/"): {"$tensor": index} for index, (name, *_) in enumerate(rows)}

    def array(value: Any, path: str) -> int:
        kinds = {"b1": "BOOL", "u1": "U8", "i4": "I32", "i8": "I64", "f8": "F64"}
        rows.append((path, kinds[value.dtype.str[1:]], value.shape, value.tobytes()))
        return len(rows) - 1

    tree = {
        "objects": {"model": {"kind": "module", "state": objects}},
        "run": {name: encode(value, path=f"run.{name}", array=array) for name, value in state().items()},
    }
    specs = tuple(
        TensorSpec(name, dtype, shape, (1, 2) if name == "model/F32" else None) for name, dtype, shape, _ in rows
    )
    place = layout(specs)
    logged = metrics(snapshot.step)
    new = logged.stage()
    if snapshot.step > FIRST.step:  # so few would be sent again otherwise
        before = metrics(FIRST.step).stage()
        count, size = new.rows - before.rows, new.payload_bytes - before.payload_bytes
        new = RowsStaged(before.rows, count, before.payload_bytes, size, new.names)
    data = bytearray(place.data_bytes + new.size_bytes)
    logged.rows.copy(new, memoryview(data)[place.data_bytes :])
    for (_, dtype, shape, body), offset in zip(rows, place.offsets, strict=True):
        data[offset : offset + len(body)] = body
        assert len(stored_as(dtype, shape)[1]) >= len(shape)
    made = Staged(
        id=str(snapshot),
        step=snapshot.step,
        epoch=1,
        reason="notice",
        created=1_700_000_000.25,
        tree=tree,
        specs=specs,
        history=new,
        data_bytes=place.data_bytes,
        latest={"train/loss": 0.25, "valid/top1": float("nan")},
        best={"train/loss:min": Best(0.25, 2, 0)},
        evaluated={"valid/top1": 0.5},
        arguments={"lr": 0.001},
        environment={"python": "3.11"},
        timings={"capture": 0.5},
    )
    return made, memoryview(data)


def main(target: Path) -> None:
    store = local_store(target.resolve())
    holder = Holder("host", "i-0123", "boot", "pid:[4026531836]", 11, 111, 12, 112)
    store.put_if_absent(RUN_KEY, RunRecord("0123456789abcdef", 1_700_000_000.0, "n", {"team": "a"}).to_bytes())
    parent = previous = None
    for snapshot, selector in ((FIRST, "newest"), (SECOND, "step=10")):
        consumed = () if parent is None else ("step=10",)
        number = snapshot.attempt
        claim(store, number, holder, selector, created=1_700_000_000.0, arguments={"lr": 0.001})
        write_base(store, Base(number, None if parent is None else str(parent), selector, consumed))
        made, data = staged(snapshot)
        lost = None if parent is None else Lost(2, 0.5)
        manifest, previous = upload(
            store, made, data, run_id="0123456789abcdef", parent=parent, previous=previous, lost=lost
        )
        commit(store, replace(manifest, committed=1_700_000_001.0))
        beat = Heartbeat(number, 3, 1_700_000_002.0, number == 1, str(snapshot), holder=holder)
        write_heartbeat(store, replace(beat, reached=Reached(snapshot.step + 2, 0.5)))
        parent = snapshot


if __name__ == "__main__":
    main(Path(sys.argv[1]))
