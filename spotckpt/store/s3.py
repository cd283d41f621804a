"""S3 and what speaks its protocol.

Reads and listings are strongly consistent, one key changes atomically
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html#ConsistencyModel), and PutObject honours
`If-None-Match: *` (https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html).
"""

from __future__ import annotations

import builtins
import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError

from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import BucketMissing, NotFound, StoreError, Unavailable
from spotckpt.store.base import (
    MIB,
    Arrived,
    Buffer,
    Progress,
    Reading,
    Span,
    Stat,
    Store,
    Unfinished,
    check_key,
    check_prefix,
    pieces,
    request_bytes,
    size_of,
    size_of_spans,
)
from spotckpt.store.body import Body
from spotckpt.store.client import Call, Client
from spotckpt.store.limiter import Pace
from spotckpt.store.multipart import Upload
from spotckpt.store.parallel import at_once
from spotckpt.store.translate import translate

SINGLE_PUT_BYTES = 16 * MIB
RANGES_AT_ONCE = 8
DELETED_AT_ONCE = 1000


class S3Store(Store):
    """Objects below `s3://bucket/prefix`.

    Args:
        uri: the root.
        environment: what is used of the process's environment: credentials, profile, region, endpoint.
        call_timeout_s: the deadline of a call that is given none.
        clock: for deadlines.
        limiter: asked before each piece of a `put` is sent.
        sent: told of each piece of a `put` that has gone, confirmed or not; raising in it gives the transfer up.
    """

    def __init__(
        self,
        uri: str,
        *,
        environment: Mapping[str, str],
        call_timeout_s: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
        limiter: Pace | None = None,
        sent: Callable[[int], None] | None = None,
    ) -> None:
        self.bucket, _, prefix = uri.partition("://")[2].partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        self.uri = f"s3://{self.bucket}/{self._prefix}".rstrip("/")
        self.call_timeout_s = call_timeout_s
        self.clock = clock
        self._client = Client.of(environment)
        self._limiter = limiter
        self._sent = sent
        self._bucket_seen = False

    def create(self, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """See `Store.create`."""
        call = self._call("create", key, self.until(deadline, size_bytes=len(data)), mutates=True)
        self._put_object(call, key, Body([data]), IfNoneMatch="*")

    def put(
        self,
        key: str,
        data: Sequence[Buffer],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        reading: Reading | None = None,
    ) -> Stat:
        """See `Store.put`. Up to 16 MiB in one request, above that in parts."""
        size_bytes = size_of(data)
        call = self._call_to_put(key, size_bytes, deadline)
        if size_bytes > SINGLE_PUT_BYTES:
            Upload(self._client, call, self._place(key), self.clock).send(data, progress, reading)
        else:
            self._put_object(call, key, Body(data, reading=reading))
            if progress is not None:
                progress(size_bytes)
        return self._arrived(call, key, size_bytes)

    def put_resumed(
        self, key: str, data: Sequence[Buffer], *, deadline: Deadline | None = None, progress: Progress | None = None
    ) -> Stat:
        """See `Store.put_resumed`: of what is sent in parts, those that are there need not go again."""
        size_bytes = size_of(data)
        if size_bytes <= SINGLE_PUT_BYTES:
            return self.put(key, data, deadline=deadline, progress=progress)
        call = self._call_to_put(key, size_bytes, deadline)
        Upload(self._client, call, self._place(key), self.clock).go_on(data, progress)
        return self._arrived(call, key, size_bytes)

    def _call_to_put(self, key: str, size_bytes: int, deadline: Deadline | None) -> Call:
        until = self.until(deadline, size_bytes=size_bytes)
        return replace(self._call("put", key, until, mutates=True), pace=self._limiter, sent=self._sent)

    def _arrived(self, call: Call, key: str, size_bytes: int) -> Stat:
        found = self.stat(key, deadline=call.deadline)
        if found.size_bytes != size_bytes:
            raise StoreError("put", call.key, f"{size_bytes} bytes were sent, {found.size_bytes} are there")
        return found

    def read(self, key: str, *, limit_bytes: int, deadline: Deadline | None = None) -> bytes:
        """See `Store.read`."""
        call = self._call("read", key, self.until(deadline, size_bytes=limit_bytes))
        return self._client.read(call, limit_bytes=limit_bytes, **self._place(key))

    def read_into(
        self,
        key: str,
        spans: Sequence[Span],
        *,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        arrived: Arrived | None = None,
        etag: str | None = None,
        width: int | None = None,
    ) -> None:
        """See `Store.read_into`. A few requests at a time, all for one etag."""
        deadline = self.until(deadline, size_bytes=size_of_spans(spans))
        call = self._call("read_into", key, deadline)
        version = etag or self.stat(key, deadline=deadline).etag
        place = self._place(key)
        arrivals = _Arrivals(spans, arrived)

        def read(index: int, offset: int, buffers: Sequence[memoryview]) -> int:
            count = self._client.retried(lambda: self._client.fill(call, offset, buffers, etag=version, **place), call)
            arrivals.came(index, count)
            return count

        jobs = (functools.partial(read, *request) for request in _requests(spans))
        at_once(jobs, width=width or RANGES_AT_ONCE, halt=call.halt, done=progress or _nobody)

    def list(self, prefix: str, *, deadline: Deadline | None = None) -> builtins.list[Stat]:
        """See `Store.list`."""
        call = self._call("list", check_prefix(prefix), self.until(deadline))
        found: dict[str, Stat] = {}
        place = {"Bucket": self.bucket, "Prefix": self._prefix + prefix}
        while True:
            page = self._request("list_objects_v2", call, **place)
            for item in page.get("Contents", []):
                key = item["Key"].removeprefix(self._prefix)
                found[key] = Stat(key, item["Size"], item["ETag"].strip('"'), _seconds(item.get("LastModified")))
            following = page.get("NextContinuationToken")
            if not page.get("IsTruncated"):
                return list(found.values())
            if not following or following == place.get("ContinuationToken"):
                raise Unavailable("list", call.key, "the store does not say how its listing goes on")
            place["ContinuationToken"] = following

    def stat(self, key: str, *, deadline: Deadline | None = None) -> Stat:
        """See `Store.stat`."""
        call = self._call("stat", key, self.until(deadline))
        try:
            answer = self._request("head_object", call, **self._place(key))
        except NotFound:
            self._require_bucket(call)
            raise
        return Stat(key, answer["ContentLength"], answer["ETag"].strip('"'), _seconds(answer.get("LastModified")))

    def delete(self, keys: Iterable[str], *, deadline: Deadline | None = None) -> None:
        """See `Store.delete`."""
        deadline = self.until(deadline)
        remaining = [check_key(key) for key in keys]
        while remaining:
            batch, remaining = remaining[:DELETED_AT_ONCE], remaining[DELETED_AT_ONCE:]
            self._delete(self._call("delete", batch[0], deadline, mutates=True), batch)

    def time(self, *, deadline: Deadline | None = None) -> float:
        """See `Store.time`."""
        call = self._call("time", "", self.until(deadline))
        answer = self._request("list_objects_v2", call, Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(date).timestamp() if date else 0.0

    def unfinished(self, *, deadline: Deadline | None = None) -> builtins.list[Unfinished]:
        """See `Store.unfinished`: multipart uploads."""
        call = self._call("unfinished", "", self.until(deadline))
        found: list[Unfinished] = []
        place = {"Bucket": self.bucket, "Prefix": self._prefix}
        while True:
            page = self._request("list_multipart_uploads", call, **place)
            for item in page.get("Uploads", []):
                key = item["Key"].removeprefix(self._prefix)
                found.append(Unfinished(key, item["UploadId"], _seconds(item.get("Initiated"))))
            following = {
                "KeyMarker": page.get("NextKeyMarker", ""),
                "UploadIdMarker": page.get("NextUploadIdMarker", ""),
            }
            if not page.get("IsTruncated") or not all(following.values()) or following.items() <= place.items():
                return found
            place.update(following)

    def discard(self, write: Unfinished, *, deadline: Deadline | None = None) -> None:
        """See `Store.discard`."""
        call = self._call("discard", write.key, self.until(deadline), mutates=True)
        try:
            self._request("abort_multipart_upload", call, UploadId=write.name, **self._place(write.key))
        except (NotFound, Unavailable) as error:
            if not _is_gone(error):
                raise

    def close(self) -> None:
        """See `Store.close`."""
        self._client.close()

    def _call(self, operation: str, key: str, deadline: Deadline, *, mutates: bool = False) -> Call:
        return Call(operation, f"{self.uri}/{key}", deadline, mutates)

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._prefix + check_key(key)}

    def _request(self, method: str, call: Call, **parameters: Any) -> dict[str, Any]:
        answer = self._client.request(method, call, **parameters)
        self._bucket_seen = True
        return answer

    def _put_object(self, call: Call, key: str, body: Body, **conditions: str) -> None:
        self._request("put_object", call, **body.parameters, **self._place(key), **conditions)

    def _require_bucket(self, call: Call) -> None:
        # The 404 of a HEAD has no body: it does not say whether the key or the whole bucket is missing.
        if self._bucket_seen:
            return
        try:
            self._request("head_bucket", call, Bucket=self.bucket)
        except NotFound as error:
            hint = "create the bucket, or correct its name or the endpoint"
            raise BucketMissing(call.operation, call.key, f"there is no bucket {self.bucket}", hint=hint) from error

    def _delete(self, call: Call, keys: Sequence[str]) -> None:
        listed = {"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True}
        answer = self._request("delete_objects", call, Bucket=self.bucket, Delete=listed)
        for problem in answer.get("Errors", []):
            if problem.get("Code") != "NoSuchKey":
                raise _refused(problem, f"s3://{self.bucket}/{problem.get('Key', '')}")


def _is_gone(error: StoreError) -> bool:
    said = error.__cause__
    return isinstance(said, ClientError) and said.response.get("Error", {}).get("Code") in ("NoSuchUpload", "NoSuchKey")


def _seconds(when: datetime | None) -> float:
    return math.inf if when is None else when.timestamp()


def _refused(problem: Mapping[str, str], key: str) -> StoreError:
    # One object of a batch: as if a request of its own had been answered so.
    status = {"AccessDenied": 403, "SlowDown": 503, "InternalError": 500}.get(problem.get("Code", ""), 400)
    response: Any = {"Error": dict(problem), "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate(ClientError(response, "DeleteObjects"), operation="delete", key=key, mutates=True)


def _requests(spans: Sequence[Span]) -> Iterator[tuple[int, int, Sequence[memoryview]]]:
    most_bytes = request_bytes(size_of_spans(spans))
    for index, (start, buffers) in enumerate(spans):
        for number, piece in enumerate(pieces(buffers, most_bytes)):
            yield index, start + number * most_bytes, piece


def _nobody(count: int) -> None:
    pass


class _Arrivals:
    """Which spans are there."""

    def __init__(self, spans: Sequence[Span], arrived: Arrived | None) -> None:
        self._arrived = arrived or _nobody
        self._missing = [size_of(buffers) for _, buffers in spans]
        self._lock = threading.Lock()
        for index, missing in enumerate(self._missing):
            if not missing:
                self._arrived(index)

    def came(self, index: int, count: int) -> None:
        with self._lock:
            self._missing[index] -= count
            complete = not self._missing[index]
        if complete:
            self._arrived(index)
