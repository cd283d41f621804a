"""Large objects go up in parts, a few at a time; nothing is visible until all are there.

At most 10,000 parts of 5 MiB to 5 GiB each
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html). CompleteMultipartUpload can answer 200 with an
error in its body, which botocore turns into an error.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from spotckpt.deadline import Clock, Deadline
from spotckpt.errors import Denied, NotFound, OutcomeUnknown, StoreError, Unavailable
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
        for left in self._unfinished():
            self._abort(left)
        upload_id = self._create()
        try:
            self._complete(upload_id, self._send_parts(upload_id, data, progress, reading))
        except BaseException:
            # Whatever ended it, Ctrl-C included: the parts are billed until they are aborted.
            self._abort(upload_id)
            raise

    def go_on(self, data: Sequence[Buffer], progress: Progress | None) -> None:
        """As `send`, but takes up what an earlier one of the same bytes left, and leaves it when it is given up."""
        upload_id, there = self._left(data)
        sent = self._send_parts(upload_id, data, progress, None, there)
        try:
            self._complete(upload_id, sent)
        except (OutcomeUnknown, Unavailable):
            raise
        except StoreError:
            self._abort(upload_id)  # the store refuses to make an object of these parts: the next one begins anew
            raise

    def _left(self, data: Sequence[Buffer]) -> tuple[str, Mapping[int, _Part]]:
        """An unfinished upload of the object, else a new one, and those of its parts that hold the right bytes."""
        for upload_id in self._unfinished():
            listed = self._listed(upload_id)
            if listed:
                bodies = enumerate(pieces(data, planned_part_bytes(size_of(data))), start=1)
                return upload_id, {
                    number: part for number, body in bodies if (part := _matching(listed.get(number), number, body))
                }
            self._abort(upload_id)
        return self._create(), {}

    def _listed(self, upload_id: str) -> dict[int, dict[str, Any]]:
        """What the store says of each part; nothing where it may not be asked, or the upload is gone."""
        call, found, marker = replace(self.call, mutates=False), {}, 0
        while True:
            try:
                page = self.client.request(
                    "list_parts", call, UploadId=upload_id, PartNumberMarker=marker, **self.place
                )
            except (Denied, NotFound):
                return {}
            found.update({part["PartNumber"]: part for part in page.get("Parts", [])})
            following = int(page.get("NextPartNumberMarker") or 0)
            if not page.get("IsTruncated") or following <= marker:
                return found
            marker = following

    def _create(self) -> str:
        asked = replace(self.call, mutates=False)
        created = self.client.request("create_multipart_upload", asked, ChecksumAlgorithm="CRC32", **self.place)
        return str(created["UploadId"])

    def _send_parts(
        self,
        upload_id: str,
        data: Sequence[Buffer],
        progress: Progress | None,
        reading: Reading | None,
        there: Mapping[int, _Part] = MappingProxyType({}),
    ) -> list[_Part]:
        sent: list[_Part] = []

        def done(part: _Part) -> None:
            sent.append(part)
            if progress is not None:
                progress(part.size_bytes)

        for part in there.values():
            done(part)
        at_once(self._jobs(upload_id, data, reading, there), width=PARTS_AT_ONCE, halt=self.call.halt, done=done)
        return sorted(sent, key=lambda part: part.number)

    def _jobs(
        self, upload_id: str, data: Sequence[Buffer], reading: Reading | None, there: Collection[int]
    ) -> Iterator[Callable[[], _Part]]:
        # Checksum and digest of a part are made when it is taken from here: in order, while earlier parts are sent.
        part_bytes = planned_part_bytes(size_of(data))
        for index, part in enumerate(pieces(data, part_bytes)):
            if index + 1 in there:
                continue
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

    def _unfinished(self) -> list[str]:
        """What an earlier process left of the same object: a key has one writer at a time."""
        call = replace(self.call, mutates=False)
        place = {"Bucket": self.place["Bucket"], "Prefix": self.place["Key"]}
        try:
            listed = self.client.request("list_multipart_uploads", call, **place)
        except StoreError:
            return []  # the right to list uploads is not needed for saving; a lifecycle rule is the last resort
        return [upload["UploadId"] for upload in listed.get("Uploads", []) if upload["Key"] == self.place["Key"]]

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


def _matching(listed: Mapping[str, Any] | None, number: int, data: Sequence[memoryview]) -> _Part | None:
    """A part that is there with the right bytes: by its length and its checksum, or its MD5 where that is its ETag."""
    if listed is None or listed.get("Size") != size_of(data):
        return None
    body, etag = Body(data), str(listed.get("ETag", ""))
    known = listed.get("ChecksumCRC32")
    if known is not None:
        return _Part(number, etag, body.checksum, body.size_bytes) if known == body.checksum else None
    md5 = hashlib.md5(usedforsecurity=False)
    for block in body.buffers:
        md5.update(block)
    return _Part(number, etag, body.checksum, body.size_bytes) if md5.hexdigest() == etag.strip('"') else None


def _combined_etag(parts: Sequence[_Part]) -> str:
    # The MD5 of the parts' MD5s, unless the object is encrypted with KMS: then nothing is equal to it.
    try:
        digests = bytes.fromhex("".join(part.etag.strip('"') for part in parts))
    except ValueError:
        return "unknown"
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
