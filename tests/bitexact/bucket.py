"""A run as it lies in the store, read without spotckpt: the harness does not take its word for anything."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.servers import S3Env

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


class Objects(Protocol):
    """Where a run's objects lie: `file://` or `s3://`."""

    uri: str

    def names(self, folder: str) -> list[str]:
        """What comes after `folder/` in every key."""

    def read(self, key: str) -> bytes:
        """The whole object."""


class Files:
    """A run in a directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, f"file://{root}"

    def names(self, folder: str) -> list[str]:
        below = self.root / folder
        return [str(path.relative_to(below)) for path in below.rglob("*") if path.is_file()]

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()


class S3Objects:
    """A run in a bucket of an S3 server."""

    def __init__(self, env: S3Env) -> None:
        self.env, self.uri = env, env.uri

    def names(self, folder: str) -> list[str]:
        prefix = f"{self.uri.removeprefix(f's3://{self.env.bucket}/')}/{folder}/"
        return [key.removeprefix(prefix) for key in self.env.keys(prefix)]

    def read(self, key: str) -> bytes:
        path = f"{self.uri.removeprefix(f's3://{self.env.bucket}/')}/{key}"
        with self.env.client.get_object(Bucket=self.env.bucket, Key=path)["Body"] as body:
            content: bytes = body.read()
        return content


class Bucket:
    """What the harness wants to know of a run."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.uri = objects.uri

    def keys(self) -> set[str]:
        """Every object but the heartbeats."""
        found = {
            f"{folder}/{name}" for folder in ("attempts", "snapshots", "packs") for name in self._objects.names(folder)
        }
        return {key for key in found if not key.endswith(".heartbeat.json")}

    def snapshots(self) -> list[Snapshot]:
        """Every committed snapshot, in their order."""
        found = (Snapshot.parse(name.removesuffix(".json")) for name in self._objects.names("snapshots"))
        return sorted(snapshot for snapshot in found if snapshot)

    def attempts(self) -> list[int]:
        """The numbers of all claims."""
        return sorted(
            int(m[1]) for name in self._objects.names("attempts") if (m := re.fullmatch(r"(\d{4,})\.json", name))
        )

    def base(self, attempt: int) -> Snapshot | None:
        """What an attempt resumed from; None for a fresh start."""
        record = json.loads(self._objects.read(f"attempts/{attempt:04d}.base.json"))["body"]
        return record["snapshot"] and Snapshot.parse(record["snapshot"])
