"""Large objects go up in parts, a few at a time; nothing is visible until all are there.

At most 10,000 parts of 5 MiB to 5 GiB each
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html). CompleteMultipartUpload can answer 200 with an
error in its body, which botocore turns into an error.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from spotckpt.deadline import Clock, Deadline
from spotckpt.errors import OutcomeUnknown, StoreError, Unavailable
from spotckpt.store.base import MIB, Buffer, Progress, Reading, pieces, size_of
from spotckpt.store.client import Call, Client
from spotckpt.store.parallel import at_once

PART_BYTES = 8 * MIB
MOST_PARTS = 10_000
PARTS_AT_ONCE = 4
ABORT_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class _Part:
    number: int
    etag: str
    checksum: str
    size_bytes: int

    def to_request(self) -> dict[str, Any]:
        return {"PartNumber": self.number, "ETag": self.etag, "ChecksumCRC32": self.checksum}


@dataclass(frozen=True)
class Upload:
    """One object's upload in parts. `place` holds the request's Bucket and Key."""

    client: Client
    call: Call
    place: Mapping[str, str]
    clock: Clock

    def send(self, data: Sequence[Buffer], progress: Progress | None, reading: Reading | None) -> None:
        """Uploads the concatenated buffers; on any error, also one that `progress` raises, the upload is aborted."""
        self._sweep()
        asked = self.client.request(
            "create_multipart_upload", replace(self.call, mutates=False), ChecksumAlgorithm="CRC32", **self.place
        )
        upload_id = self.client.run(self.call, asked)["UploadId"]
        try:
            self._complete(upload_id, self._send_parts(upload_id, data, progress, reading))
        except BaseException:
            # Whatever ended it, Ctrl-C included: the parts are billed until they are aborted.
            self._abort(upload_id)
            raise

    def _send_parts(
        self, upload_id: str, data: Sequence[Buffer], progress: Progress | None, reading: Reading | None
    ) -> list[_Part]:
        part_bytes = max(PART_BYTES, -(-size_of(data) // MOST_PARTS))
        starts = (
            functools.partial(self._send_part, upload_id, number, part, (number - 1) * part_bytes, reading)
            for number, part in enumerate(pieces(data, part_bytes), start=1)
        )

        def done(part: _Part) -> None:
            if progress is not None:
                progress(part.size_bytes)

        return at_once(starts, width=PARTS_AT_ONCE, deadline=self.call.deadline, done=done)

    def _send_part(
        self, upload_id: str, number: int, buffers: Sequence[Buffer], offset: int, reading: Reading | None
    ) -> Future[_Part]:
        body, checksum = to_body(buffers)
        if reading is not None:
            reading(offset, body.getbuffer())

        async def attempt() -> _Part:
            body.seek(0)
            answer = await self.client.request(
                "upload_part",
                self.call,
                Body=body,
                ChecksumCRC32=checksum,
                PartNumber=number,
                UploadId=upload_id,
                **self.place,
            )
            return _Part(number, answer["ETag"], checksum, body.getbuffer().nbytes)

        return self.client.submit(self.client.retried(attempt, self.call.deadline))

    def _complete(self, upload_id: str, parts: Sequence[_Part]) -> None:
        listed = {"Parts": [part.to_request() for part in parts]}
        request = self.client.request(
            "complete_multipart_upload", self.call, MultipartUpload=listed, UploadId=upload_id, **self.place
        )
        try:
            self.client.run(self.call, request)
        except (OutcomeUnknown, Unavailable):
            # Its answer may have been lost, or an earlier try have landed (NoSuchUpload): look, do not guess.
            if not self._is_there(_combined_etag(parts)):
                raise

    def _is_there(self, etag: str) -> bool:
        request = self.client.request("head_object", replace(self.call, mutates=False), **self.place)
        try:
            found: str = self.client.run(self.call, request)["ETag"]
        except StoreError:
            return False
        return found.strip('"') == etag

    def _sweep(self) -> None:
        """Aborts what an earlier process left of the same object: a key has one writer at a time."""
        call = replace(self.call, mutates=False)
        place = {"Bucket": self.place["Bucket"], "Prefix": self.place["Key"]}
        try:
            listed = self.client.run(call, self.client.request("list_multipart_uploads", call, **place))
        except StoreError:
            return  # the right to list uploads is not needed for saving; a lifecycle rule is the last resort
        for upload in listed.get("Uploads", []):
            if upload["Key"] == self.place["Key"]:
                self._abort(upload["UploadId"])

    def _abort(self, upload_id: str) -> None:
        deadline = Deadline.after(ABORT_TIMEOUT_S, self.clock)
        call = replace(self.call, deadline=deadline)

        async def attempt() -> None:
            await self.client.request("abort_multipart_upload", call, UploadId=upload_id, **self.place)

        try:
            self.client.run(call, self.client.retried(attempt, deadline))
        except StoreError:
            return  # the error that ended the upload is the one to tell; a lifecycle rule is the last resort


def to_body(data: Sequence[Buffer]) -> tuple[BytesIO, str]:
    """A request's body and its CRC-32 as S3 wants it. The server checks it: the payload itself is not signed."""
    body = BytesIO(b"".join(data))
    return body, base64.b64encode(zlib.crc32(body.getbuffer()).to_bytes(4, "big")).decode()


def _combined_etag(parts: Sequence[_Part]) -> str:
    # The MD5 of the parts' MD5s, unless the object is encrypted with KMS: then nothing is equal to it.
    try:
        digests = bytes.fromhex("".join(part.etag.strip('"') for part in parts))
    except ValueError:
        return "unknown"
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
