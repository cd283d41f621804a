"""Raw clients, the limit: one file of tmpfs to one object and back into new memory, 16 MiB a request, eight at a time.

No payload is signed and no checksum computed.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import obstore
from awscrt.auth import AwsCredentialsProvider, AwsSignedBodyValue, AwsSigningAlgorithm, AwsSigningConfig
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup
from awscrt.s3 import S3Client, S3RequestTlsMode, S3RequestType
from botocore.config import Config

PART_BYTES = 16 << 20
WIDTH = 8
KEY = "raw"


class Raw:
    """One file and one bucket.

    Args:
        path: the file, on a tmpfs as a slot is.
        size_bytes: of it; it is made and touched.
        bucket: which exists.
    """

    def __init__(self, path: str, size_bytes: int, bucket: str) -> None:
        self._path, self._size_bytes, self._bucket = path, size_bytes, bucket
        self._view = _file(Path(path), size_bytes)
        self._clients: dict[str, Any] = {
            "boto3": _Boto3(bucket),
            "awscrt": _Awscrt(bucket),
            "obstore": _Obstore(bucket),
        }

    def put(self, client: str) -> float:
        """Wall seconds of an upload."""
        started = time.perf_counter()
        self._clients[client].put(KEY, self._path, self._view)
        return time.perf_counter() - started

    def get(self, client: str) -> float:
        """Wall seconds of reading it into new memory."""
        started = time.perf_counter()
        with mmap.mmap(-1, self._size_bytes) as target, memoryview(target) as view:
            self._clients[client].get(KEY, view)
            return time.perf_counter() - started

    def right(self, client: str) -> bool:
        """Whether what was put comes back."""
        with mmap.mmap(-1, self._size_bytes) as target, memoryview(target) as view:
            self._clients[client].get(KEY, view)
            return bool(view == self._view)


class _Boto3:
    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        config = Config(
            s3={"payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=WIDTH,
        )
        self._client = boto3.client("s3", config=config)

    def put(self, key: str, path: str, view: memoryview) -> None:
        del path
        place = {"Bucket": self._bucket, "Key": key}
        upload = self._client.create_multipart_upload(**place)["UploadId"]

        def part(number: int, start: int, end: int) -> dict[str, Any]:
            body = bytes(view[start:end])
            etag = self._client.upload_part(Body=body, PartNumber=number, UploadId=upload, **place)["ETag"]
            return {"PartNumber": number, "ETag": etag}

        parts = _in_threads(part, len(view))
        self._client.complete_multipart_upload(UploadId=upload, MultipartUpload={"Parts": parts}, **place)

    def get(self, key: str, view: memoryview) -> None:
        def part(number: int, start: int, end: int) -> None:
            del number
            span = f"bytes={start}-{end - 1}"
            body = self._client.get_object(Bucket=self._bucket, Key=key, Range=span)["Body"]._raw_stream
            while start < end and (count := body.readinto(view[start:end])):
                start += count
            body.release_conn()
            assert start == end

        _in_threads(part, len(view))


class _Awscrt:
    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        url = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
        self._host = url.netloc
        group = EventLoopGroup(WIDTH)
        provider = AwsCredentialsProvider.new_static(
            os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        )
        region = os.environ["AWS_DEFAULT_REGION"]
        self._client = S3Client(
            bootstrap=ClientBootstrap(group, DefaultHostResolver(group)),
            region=region,
            tls_mode=S3RequestTlsMode.DISABLED,
            part_size=PART_BYTES,
            max_active_connections_override=WIDTH,
            signing_config=AwsSigningConfig(
                algorithm=AwsSigningAlgorithm.V4,
                credentials_provider=provider,
                region=region,
                service="s3",
                signed_body_value=AwsSignedBodyValue.UNSIGNED_PAYLOAD,
                use_double_uri_encode=False,
            ),
        )

    def put(self, key: str, path: str, view: memoryview) -> None:
        request = self._request("PUT", key, ("Content-Length", str(len(view))))
        self._done(type=S3RequestType.PUT_OBJECT, request=request, send_filepath=path)

    def get(self, key: str, view: memoryview) -> None:
        def arrived(chunk: bytes, offset: int, **_: object) -> None:
            view[offset : offset + len(chunk)] = chunk

        self._done(type=S3RequestType.GET_OBJECT, request=self._request("GET", key), on_body=arrived)

    def _request(self, method: str, key: str, *headers: tuple[str, str]) -> HttpRequest:
        return HttpRequest(method, f"/{self._bucket}/{key}", HttpHeaders([("Host", self._host), *headers]))

    def _done(self, **request: Any) -> None:
        # `finished_future` is set before the last native thread lets go: wait for the callback too
        done = threading.Event()
        asked = self._client.make_request(on_done=lambda **_: done.set(), **request)
        asked.finished_future.result(120)
        done.wait(10)


class _Obstore:
    def __init__(self, bucket: str) -> None:
        self._store = obstore.store.S3Store(
            bucket,
            endpoint=os.environ["AWS_ENDPOINT_URL_S3"],
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            region=os.environ["AWS_DEFAULT_REGION"],
            virtual_hosted_style_request=False,
            unsigned_payload=True,
            client_options={"allow_http": True},
        )

    def put(self, key: str, path: str, view: memoryview) -> None:
        del view
        obstore.put(self._store, key, Path(path), chunk_size=PART_BYTES, max_concurrency=WIDTH)

    def get(self, key: str, view: memoryview) -> None:
        def part(number: int, start: int, end: int) -> None:
            del number
            view[start:end] = memoryview(obstore.get_range(self._store, key, start=start, end=end)).cast("B")

        _in_threads(part, len(view))


def _in_threads(part: Callable[[int, int, int], Any], size_bytes: int) -> list[Any]:
    with ThreadPoolExecutor(WIDTH) as pool:
        return list(pool.map(lambda cut: part(*cut), _cuts(size_bytes)))


def _cuts(size_bytes: int) -> Iterator[tuple[int, int, int]]:
    for number, start in enumerate(range(0, size_bytes, PART_BYTES), 1):
        yield number, start, min(size_bytes, start + PART_BYTES)


def _file(path: Path, size_bytes: int) -> memoryview:
    with path.open("w+b") as file:
        file.truncate(size_bytes)
        mapped = mmap.mmap(file.fileno(), size_bytes)
    block = os.urandom(1 << 20)
    for start in range(0, size_bytes, len(block)):
        end = min(size_bytes, start + len(block))
        mapped[start:end] = block[: end - start]
    return memoryview(mapped)
