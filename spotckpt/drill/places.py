"""Where a drill's runs lie: a directory of its own, a prefix of the user's, or a bucket on a server started here."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from spotckpt.address import Address
from spotckpt.config import size_text
from spotckpt.drill.process import Child, Output, wait_until
from spotckpt.errors import DrillFailed, StoreError, UsageError
from spotckpt.snapshot.keys import SNAPSHOTS_PREFIX
from spotckpt.store.base import Store
from spotckpt.store.open import open_store

BUCKET = "demo"
_START_TIMEOUT_S = 30.0


class Place:
    """A prefix that was not there before and is gone after `stop`.

    Attributes:
        uri: of the prefix.
        environment: what a process needs to reach it.
    """

    uri: str
    environment: Mapping[str, str]

    def start(self) -> None:
        """Returns when it can be written to."""

    def stop(self) -> None:
        """Removes it."""

    def run_uri(self, name: str) -> str:
        """The address of a run of it."""
        return f"{self.uri}/{name}"

    def store(self, name: str) -> Store:
        """What lies in a run of it."""
        return open_store(self.run_uri(name), environment=self.environment)


class Folder(Place):
    """A directory on this machine."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"file://{folder}"
        self.environment = dict(os.environ)

    def __str__(self) -> str:
        """For whom the drill is told to."""
        return f"the snapshots go to {self.uri}"


class Prefix(Place):
    """New keys below an address of the user's, with the user's own credentials.

    Args:
        address: as in `s3://bucket/scratch`.
        say: told what could not be removed.
    """

    def __init__(self, address: str, say: Any) -> None:
        self.uri = f"{Address.parse(address).uri}/drill-{secrets.token_hex(4)}"
        self.environment = dict(os.environ)
        self._say = say
        self._store: Store | None = None

    def start(self) -> None:
        """Returns when the store has answered.

        Raises:
            StoreError: it does not, or may not be listed: no training could use it.
        """
        store = open_store(self.uri, environment=self.environment)
        store.list("")
        self._store = store

    def __str__(self) -> str:
        """For whom the drill is told to."""
        return f"the snapshots go to {self.uri}"

    def stop(self) -> None:
        """Deletes all that the drill wrote; says so where that is not allowed."""
        if self.uri.startswith("file://"):
            shutil.rmtree(self.uri.removeprefix("file://"), ignore_errors=True)
        elif self._store is not None:
            self._try(self._discard_uploads, self._store)  # a right of its own, which some have not
            self._try(self._delete_objects, self._store)
            self._store.close()

    def _try(self, remove: Callable[[Store], None], store: Store) -> None:
        try:
            remove(store)
        except StoreError as error:
            self._say(f"something of what the drill wrote is still in {self.uri}: {error}")

    @staticmethod
    def _discard_uploads(store: Store) -> None:
        for write in store.unfinished():
            store.discard(write)

    @staticmethod
    def _delete_objects(store: Store) -> None:
        store.delete([one.key for one in store.list("")])


class Bucket(Place):
    """A bucket on 127.0.0.1.

    Args:
        port: of an S3 server that runs already; 0 starts one, which forgets everything when it stops.
        log_path: what the server that is started says.
        temporary: its directory for temporary files.
    """

    def __init__(self, *, port: int, log_path: Path, temporary: Path) -> None:
        self.uri = f"s3://{BUCKET}"
        self._temporary = temporary
        self._server = None if port else Child("bucket", log_path=log_path)
        self.port = port
        self._s3: Any = None
        self._made = False

    @property
    def environment(self) -> Mapping[str, str]:  # type: ignore[override]
        """Access to this server and to no other account, file or proxy."""
        return isolated_environment(self._temporary) | {
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def start(self) -> None:
        """Returns when the bucket is there.

        Raises:
            DrillFailed: the server that runs already has one of that name, or does not answer.
        """
        if self._server is not None:
            self._start_server(self._server)
        self._s3 = _client(self.port)
        try:
            if BUCKET in [found["Name"] for found in self._s3.list_buckets()["Buckets"]]:
                raise DrillFailed(f"there is a bucket {BUCKET} already", hint="delete it, or use another server")
            self._s3.create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError) as error:
            said = f"the S3 server on 127.0.0.1:{self.port} does not answer as one: {error}"
            raise DrillFailed(said, hint="see that it runs, and on that port") from error
        self._made = True

    def _start_server(self, server: Child) -> None:
        environment = isolated_environment(self._temporary) | {"PYTHONUNBUFFERED": "1"}
        output = Output()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        server.start(command, environment=environment, on_line=output.add)
        line = wait_until(
            "the S3 server's port",
            lambda: output.find(r"Running on http://127\.0\.0\.1:(\d+)"),
            _START_TIMEOUT_S,
            alive=[server],
        )
        self.port = int(line[1])

    def __str__(self) -> str:
        """Who serves it."""
        who = "an S3 server" if self._server is None else f"moto's S3 server, process {self._server.pid},"
        return f"{who} listens on 127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Ends the server that was started; on another one, removes the bucket."""
        if self._server is not None:
            self._server.kill()
        elif self._made:
            for upload in self._s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
                self._s3.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
            for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
                for item in page.get("Contents", []):
                    self._s3.delete_object(Bucket=BUCKET, Key=item["Key"])
            self._s3.delete_bucket(Bucket=BUCKET)


def require_server() -> None:
    """Checks that moto's server is installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import moto.server  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"this needs moto's S3 server ({error})", hint='install it with: pip install "spotckpt[demo]"'
        ) from error


def isolated_environment(temporary: Path) -> dict[str, str]:
    """This process' environment without accounts, settings and proxies.

    What a child leaves in its temporary directory (torch's caches, for one) is left in `temporary`.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SPOTCKPT_")) and not name.lower().endswith("_proxy")
    }
    return kept | {"TMPDIR": str(temporary)}


def describe(store: Store, name: str) -> str:
    """What a run holds, in a line."""
    sizes = {one.key: one.size_bytes for one in store.list("")}
    committed = sum(key.startswith(SNAPSHOTS_PREFIX) for key in sizes)
    packs = sum(size for key, size in sizes.items() if key.endswith(".safetensors"))
    text = f"holds {committed} committed snapshots, {size_text(packs)} of packs"
    for write in store.unfinished():
        text += f", and an INCOMPLETE upload of {name}/{write.key}"
    return text


def copy_to(store: Store, folder: Path) -> None:
    """Downloads every object of a run."""
    for one in store.list(""):
        path = folder / one.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(one.key, limit_bytes=max(one.size_bytes, 1)))


def _client(port: int) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="demo",
        aws_secret_access_key="demo",
        region_name="us-east-1",
        config=Config(proxies={}, retries={"mode": "standard"}, s3={"addressing_style": "path"}),
    )
