"""What a trainer hands to an agent beside the bytes: all that the manifest and the part will need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

from spotckpt.snapshot.envelope import unwrap, wrap
from spotckpt.snapshot.facts import Facts, facts_from
from spotckpt.snapshot.fields import Fields
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.pack import Layout, TensorSpec, kinds_of, layout
from spotckpt.snapshot.part import MAX_PART_BYTES, Chunk, TensorEntry, specs_from
from spotckpt.snapshot.segments import NO_ROWS, RowsStaged


def table(specs: Sequence[TensorSpec], plan: Layout) -> tuple[TensorEntry, ...]:
    """The tensor table of a data section that is laid out so: each tensor one chunk of pack 0, without a digest."""
    if not specs:
        return ()
    names, dtypes, shapes, strides = zip(*specs, strict=True)
    sizes = [kind.size_bytes for kind in kinds_of(specs)]
    starts = [(0,) * len(shape) for shape in shapes]
    chunks = zip(map(Chunk, repeat(0), plan.offsets, sizes, starts, shapes), strict=True)
    return tuple(map(TensorEntry, names, dtypes, shapes, strides, chunks))


@dataclass(frozen=True, kw_only=True)
class Staged(Facts):
    """A snapshot in the spool.

    Attributes:
        id: the snapshot's id, as the agent granted it.
        tree: the encoded state tree.
        specs: the tensors; where they lie follows from all of them, by `layout`.
        history: the rows of the metric history that lie behind them.
    """

    id: str
    tree: Any
    specs: tuple[TensorSpec, ...]
    history: RowsStaged = NO_ROWS

    @property
    def slot_bytes(self) -> int:
        """What it takes in the slot."""
        return self.data_bytes + self.history.size_bytes

    @property
    def snapshot(self) -> SnapshotId:
        """`id`, parsed."""
        return SnapshotId.parse(self.id)

    def layout(self) -> Layout:
        """Where the tensors lie and what precedes them, computed again from the table."""
        return self._layout

    @cached_property
    def _layout(self) -> Layout:
        return layout(self.specs)

    @cached_property
    def tensors(self) -> tuple[TensorEntry, ...]:
        """The table, each tensor one chunk of pack 0, its offset counted from the start of the data section."""
        return table(self.specs, self.layout())

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        return wrap(
            {
                "id": self.id,
                **self.facts_to_json(),
                "tree": self.tree,
                "specs": self.specs,
                "history": self.history.to_json(),
            },
            limit_bytes=MAX_PART_BYTES,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str = "staged.json") -> Staged:
        """Reads the file; `key` is what errors name. Raises as `Part.from_bytes` does."""
        fields = Fields(unwrap(data, key=key, limit_bytes=MAX_PART_BYTES), key)
        snapshot = fields.snapshot("id")
        staged = cls(
            id=str(snapshot),
            tree=fields.body.get("tree"),
            specs=specs_from(fields, "specs"),
            history=RowsStaged.from_fields(Fields(fields.body.get("history"), key)),
            **facts_from(fields, snapshot),
        )
        if staged.data_bytes != staged.layout().data_bytes:
            raise fields.corrupt("the tensors do not lie as their shapes say")
        return staged
