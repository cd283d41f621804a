"""Large objects go up in parts, a few at a time; nothing is visible until all are there.

At most 10,000 parts of 5 MiB to 5 GiB each
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html). CompleteMultipartUpload can answer 200 with an
error in its body, which botocore turns into an error.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spotckpt.deadline import Clock, Deadline
from spotckpt.errors import OutcomeUnknown, StoreError, Unavailable
from spotckpt.store.base import MIB, Buffer, Progress, Reading, pieces, request_bytes, size_of
from spotckpt.store.body import Body
from spotckpt.store.client import Call, Client
from spotckpt.store.halt import Halt
from spotckpt.store.parallel import at_once

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
        """Uploads the concatenated buffers; on any error, also one of the caller's functions, the upload is aborted."""
        self._sweep()
        asked = replace(self.call, mutates=False)
        created = self.client.request("create_multipart_upload", asked, ChecksumAlgorithm="CRC32", **self.place)
        upload_id = created["UploadId"]
        try:
            self._complete(upload_id, self._send_parts(upload_id, data, progress, reading))
        except BaseException:
            # Whatever ended it, Ctrl-C included: the parts are billed until they are aborted.
            self._abort(upload_id)
            raise

    def _send_parts(
        self, upload_id: str, data: Sequence[Buffer], progress: Progress | None, reading: Reading | None
    ) -> list[_Part]:
        sent: list[_Part] = []

        def done(part: _Part) -> None:
            sent.append(part)
            if progress is not None:
                progress(part.size_bytes)

        at_once(self._jobs(upload_id, data, reading), width=PARTS_AT_ONCE, halt=self.call.halt, done=done)
        return sorted(sent, key=lambda part: part.number)

    def _jobs(self, upload_id: str, data: Sequence[Buffer], reading: Reading | None) -> Iterator[Callable[[], _Part]]:
        # Checksum and digest of a part are made when it is taken from here: in order, while earlier parts are sent.
        part_bytes = planned_part_bytes(size_of(data))
        for index, part in enumerate(pieces(data, part_bytes)):
            body = Body(part, offset=index * part_bytes, reading=reading)
            yield functools.partial(self._send_part, upload_id, index + 1, body)

    def _send_part(self, upload_id: str, number: int, body: Body) -> _Part:
        def attempt() -> _Part:
            answer = self.client.request(
                "upload_part", self.call, PartNumber=number, UploadId=upload_id, **body.parameters, **self.place
            )
            return _Part(number, answer["ETag"], body.checksum, body.size_bytes)

        return self.client.retried(attempt, self.call)

    def _complete(self, upload_id: str, parts: Sequence[_Part]) -> None:
        listed = {"Parts": [part.to_request() for part in parts]}
        try:
            self.client.request(
                "complete_multipart_upload", self.call, MultipartUpload=listed, UploadId=upload_id, **self.place
            )
        except (OutcomeUnknown, Unavailable):
            # Its answer may have been lost, or an earlier try have landed (NoSuchUpload): look, do not guess.
            if not self._is_there(_combined_etag(parts)):
                raise

    def _is_there(self, etag: str) -> bool:
        try:
            found = self.client.request("head_object", replace(self.call, mutates=False), **self.place)
        except StoreError:
            return False
        return str(found["ETag"]).strip('"') == etag

    def _sweep(self) -> None:
        """Aborts what an earlier process left of the same object: a key has one writer at a time."""
        call = replace(self.call, mutates=False)
        place = {"Bucket": self.place["Bucket"], "Prefix": self.place["Key"]}
        try:
            listed = self.client.request("list_multipart_uploads", call, **place)
        except StoreError:
            return  # the right to list uploads is not needed for saving; a lifecycle rule is the last resort
        for upload in listed.get("Uploads", []):
            if upload["Key"] == self.place["Key"]:
                self._abort(upload["UploadId"])

    def _abort(self, upload_id: str) -> None:
        # Not within the deadline, which may be what ended the upload, and not given up with it.
        call = replace(self.call, deadline=Deadline.after(ABORT_TIMEOUT_S, self.clock), halt=Halt())
        request = functools.partial(self.client.request, "abort_multipart_upload", call, UploadId=upload_id)
        try:
            self.client.retried(lambda: request(**self.place), call)
        except StoreError:
            return  # the error that ended the upload is the one to tell; a lifecycle rule is the last resort


def planned_part_bytes(size_bytes: int) -> int:
    """How large each part but the last must be, in whole MiB, for `MOST_PARTS` of them to hold the object."""
    needed = -(-size_bytes // MOST_PARTS)
    return max(request_bytes(size_bytes), -(-needed // MIB) * MIB)


def _combined_etag(parts: Sequence[_Part]) -> str:
    # The MD5 of the parts' MD5s, unless the object is encrypted with KMS: then nothing is equal to it.
    try:
        digests = bytes.fromhex("".join(part.etag.strip('"') for part in parts))
    except ValueError:
        return "unknown"
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
