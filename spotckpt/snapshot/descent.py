"""What a run descends from: the runs that it was forked from, one after the other, and where they lie."""

from __future__ import annotations

import posixpath
import re
from dataclasses import asdict, dataclass
from typing import Any

from spotckpt.snapshot.fields import Fields

_RUN_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Ancestor:
    """A run that another was forked from, or that one's own ancestor.

    Attributes:
        run_id: as in its `run.json`.
        uri: where it was, without secrets; for showing.
        snapshot: which of its snapshots the descendant began with.
        path: where it lies, seen from the descendant, as in `../resnet`; None if nothing there is needed. So runs that
            move together stay together, and no record leads out of its own bucket.
    """

    run_id: str
    uri: str
    snapshot: str
    path: str | None

    def to_json(self) -> dict[str, Any]:
        """As it stands in `run.json`."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Fields) -> Ancestor:
        """Reads it. Raises Corrupt."""
        run_id, path = fields.text("run_id"), fields.body.get("path")
        if not _RUN_ID.fullmatch(run_id):
            raise fields.corrupt(f"{run_id!r:.40} is no run's id")
        where = None if path is None else fields.text("path")
        return cls(run_id, fields.text("uri"), str(fields.snapshot("snapshot")), where)


def path_between(uri: str, other: str) -> str | None:
    """Where `other` lies, seen from `uri`; None if it is in another bucket, or reached in another way."""
    place, path = _placed(uri)
    other_place, other_path = _placed(other)
    return posixpath.relpath(other_path, path) if place == other_place else None


def uri_at(uri: str, path: str) -> str | None:
    """The URI of what lies there, seen from `uri`; None if that leads out of the bucket."""
    protocol, _, _ = uri.partition("://")
    place, own = _placed(uri)
    found = posixpath.normpath(posixpath.join(own, path))
    other = f"{protocol}://{found}"
    return other if not path.startswith("/") and _placed(other)[0] == place and found != own else None


def _placed(uri: str) -> tuple[tuple[str, str], str]:
    """(protocol, bucket or host) and the path with it; all of a file system is one place."""
    protocol, _, path = uri.partition("://")
    protocol = {"s3a": "s3", "local": "file"}.get(protocol, protocol)
    return (protocol, "" if protocol == "file" else path.partition("/")[0]), path.rstrip("/")
