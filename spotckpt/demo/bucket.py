"""The demo's bucket: on moto's S3 server, or on one that runs already, and a look into it past the slow network."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError

from spotckpt.demo.process import Child, DemoFailed, Output, wait_until
from spotckpt.errors import UsageError

BUCKET = "demo"
RUN = "run"
URI = f"s3://{BUCKET}/{RUN}"
_START_TIMEOUT_S = 30.0


def child_environment(port: int, *, temporary: Path) -> dict[str, str]:
    """This process' environment, with access to the server on that port and to no other account, file or proxy.

    What a child leaves in its temporary directory (torch's caches, for one) is left in `temporary`.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SPOTCKPT_")) and not name.lower().endswith("_proxy")
    }
    return kept | {
        "TMPDIR": str(temporary),
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def require_extra() -> None:
    """Checks that moto's server is installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import moto.server  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the demo needs moto's S3 server ({error})", hint='install it with: pip install "spotckpt[demo]"'
        ) from error


class Bucket:
    """A bucket on 127.0.0.1 that was not there before and is gone after `stop`.

    Args:
        port: of an S3 server that runs already; 0 starts one, which forgets everything when it stops.
        log_path: what the server that is started says.
        temporary: its directory for temporary files.
    """

    def __init__(self, *, port: int, log_path: Path, temporary: Path) -> None:
        self._temporary = temporary
        self._server = None if port else Child("bucket", log_path=log_path)
        self.port = port
        self._s3: Any = None
        self._made = False

    def start(self) -> None:
        """Returns when the bucket is there.

        Raises:
            DemoFailed: the server that runs already has one of that name, or does not answer.
        """
        if self._server is not None:
            self._start_server(self._server)
        self._s3 = _client(self.port)
        try:
            if BUCKET in [found["Name"] for found in self._s3.list_buckets()["Buckets"]]:
                raise DemoFailed(f"there is a bucket {BUCKET} already", hint="delete it, or use another server")
            self._s3.create_bucket(Bucket=BUCKET)
        except BotoCoreError as error:
            raise DemoFailed(f"the S3 server does not answer: {error}", hint="see that it runs") from error
        self._made = True

    def _start_server(self, server: Child) -> None:
        environment = child_environment(0, temporary=self._temporary) | {"PYTHONUNBUFFERED": "1"}
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

    @property
    def server(self) -> str:
        """Who serves it."""
        return "an S3 server" if self._server is None else f"moto's S3 server, process {self._server.pid},"

    def stop(self) -> None:
        """Ends the server that was started; on another one, removes the bucket."""
        if self._server is not None:
            self._server.kill()
        elif self._made:
            for upload in self._s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
                self._s3.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
            for key in self._keys():
                self._s3.delete_object(Bucket=BUCKET, Key=key)
            self._s3.delete_bucket(Bucket=BUCKET)

    def snapshots(self, attempt: int) -> list[str]:
        """Ids of the snapshots that the attempt committed, in order."""
        return sorted(
            match[1] for key in self._keys() if (match := re.search(rf"/snapshots/(a{attempt:04d}-[^/]+)\.json$", key))
        )

    def base(self, attempt: int) -> str | None:
        """The snapshot that the attempt continues; None when it has recorded none."""
        key = f"{RUN}/attempts/{attempt:04d}.base.json"
        if key not in self._keys():
            return None
        record = json.loads(self._s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        snapshot = record["body"]["snapshot"]
        return snapshot if isinstance(snapshot, str) else None

    def incomplete(self) -> list[str]:
        """Keys of the multipart uploads that are neither completed nor aborted."""
        return [upload["Key"] for upload in self._s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]

    def describe(self) -> str:
        """What the bucket holds, in a line."""
        sizes = self._keys()
        committed = sum(key.startswith(f"{RUN}/snapshots/") for key in sizes)
        packs = sum(size for key, size in sizes.items() if key.endswith(".safetensors"))
        text = f"holds {committed} committed snapshots, {packs / 2**20:.1f} MiB of packs"
        for key in self.incomplete():
            text += f", and an INCOMPLETE upload of {key}"
        return text

    def copy_to(self, directory: Path) -> None:
        """Downloads every object."""
        for key in self._keys():
            path = directory / key
            path.parent.mkdir(parents=True, exist_ok=True)
            self._s3.download_file(BUCKET, key, str(path))

    def _keys(self) -> dict[str, int]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}


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
