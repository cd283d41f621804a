"""A run as it lies in the store, read with plain fsspec and json: the harness takes no word of spotckpt's for it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import fsspec

SNAPSHOT = re.compile(r"a(\d{4,})-n(\d{6,})-s(\d{8,})-[0-9a-f]{8}")


@dataclass(frozen=True, order=True)
class Snapshot:
    """A committed snapshot, by its id."""

    attempt: int
    sequence: int
    step: int

    @classmethod
    def parse(cls, text: str) -> Snapshot | None:
        """Reads an id; None if it is something else."""
        match = SNAPSHOT.fullmatch(text)
        return cls(int(match[1]), int(match[2]), int(match[3])) if match else None


class Bucket:
    """One run in the store.

    Args:
        uri: of the run.
        environment: AWS variables, when it is on S3.
    """

    def __init__(self, uri: str, environment: dict[str, str]) -> None:
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if uri.startswith("s3://"):
            options |= {
                "endpoint_url": environment["AWS_ENDPOINT_URL_S3"],
                "key": environment["AWS_ACCESS_KEY_ID"],
                "secret": environment["AWS_SECRET_ACCESS_KEY"],
                "client_kwargs": {"region_name": environment.get("AWS_REGION", "us-east-1")},
            }
        self._fs, self._root = fsspec.core.url_to_fs(uri, **options)

    def names(self, folder: str) -> list[str]:
        """The names of the objects right below a folder."""
        try:
            return [path.rpartition("/")[2] for path in self._fs.ls(f"{self._root}/{folder}", detail=False)]
        except FileNotFoundError:
            return []

    def snapshots(self) -> list[Snapshot]:
        """Every committed snapshot, in their order."""
        found = (Snapshot.parse(name.removesuffix(".json")) for name in self.names("snapshots"))
        return sorted(snapshot for snapshot in found if snapshot)

    def attempts(self) -> list[int]:
        """The numbers of all claims."""
        return sorted(int(m[1]) for name in self.names("attempts") if (m := re.fullmatch(r"(\d{4,})\.json", name)))

    def base(self, attempt: int) -> Snapshot | None:
        """What an attempt resumed from; None for a fresh start.

        Raises:
            FileNotFoundError: it has not recorded it.
        """
        record = json.loads(self._fs.cat_file(f"{self._root}/attempts/{attempt:04d}.base.json"))["body"]
        return record["snapshot"] and Snapshot.parse(record["snapshot"])
