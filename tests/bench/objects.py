"""What the discarding server holds: small objects whole, of large ones the length, or files when it keeps them."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.bench.wire import Answer, Piece, Request, Stream

SMALL_BYTES = 4 << 20
PAGE = 1000


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.answer = Answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())


@dataclass(frozen=True)
class Held:
    """An object or a part: its bytes, or the files that they are in, or neither."""

    size_bytes: int
    etag: str
    data: bytes | None = None
    files: tuple[Piece, ...] = ()


class Objects:
    """Buckets, made by being named.

    Args:
        keep: where the bodies of large objects go; None discards them.
    """

    def __init__(self, keep: Path | None) -> None:
        self._keep = keep
        self._objects: dict[str, Held] = {}
        self._uploads: dict[str, tuple[str, dict[int, Held]]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def answer(self, request: Request, stream: Stream) -> Answer:
        """Does what is asked; the body is taken from the stream whatever comes of it.

        Raises:
            Refused: it cannot be done.
        """
        is_part = "uploadId" in request.query and request.method == "PUT"
        body = self._receive(request, stream, small=not is_part)
        if "/" not in request.path.strip("/"):
            return self._of_bucket(request, body)
        if request.method == "PUT":
            return self._put(request, body, is_part=is_part)
        if request.method == "POST":
            return self._complete(request) if "uploadId" in request.query else self._create_upload(request)
        if request.method == "DELETE":
            return self._delete(request)
        return self._get(request)

    def _receive(self, request: Request, stream: Stream, *, small: bool) -> Held:
        number = next(self._numbers)
        size_bytes, etag = request.payload_bytes, f"{number:032x}"
        runs = stream.payload(request)
        if small and size_bytes <= SMALL_BYTES:
            data = b"".join(piece for run in runs for piece in stream.read(run))
            return Held(size_bytes, hashlib.md5(data).hexdigest(), data)
        if self._keep is None:
            for run in runs:
                stream.discard(run)
            return Held(size_bytes, etag)
        path = self._keep / f"{number}"
        with path.open("wb", buffering=0) as file:
            for run in runs:
                for piece in stream.read(run):
                    file.write(piece)
        return Held(size_bytes, etag, files=(Piece(path, 0, size_bytes),))

    # Buckets

    def _of_bucket(self, request: Request, body: Held) -> Answer:
        bucket = request.path.strip("/")
        if "delete" in request.query:
            tree = ElementTree.fromstring(body.data or b"")
            for key in tree.findall(".//{*}Key"):
                self._remove(f"{bucket}/{key.text}")
            return _xml("<DeleteResult></DeleteResult>")
        if "uploads" in request.query:
            return self._list_uploads(bucket)
        if "location" in request.query:
            return _xml("<LocationConstraint></LocationConstraint>")
        return self._list(bucket, request.query) if request.method == "GET" else Answer()

    def _list(self, bucket: str, query: Mapping[str, str]) -> Answer:
        start = f"{bucket}/"
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        with self._lock:
            keys = sorted(key[len(start) :] for key in self._objects if key.startswith(start + prefix))
        entries = [entry for entry in _entries(keys, prefix, delimiter) if entry > after]
        page, more = entries[: int(query.get("max-keys", PAGE))], len(entries) > int(query.get("max-keys", PAGE))
        found = "".join(self._entry(start, entry, is_prefix=entry not in set(keys)) for entry in page)
        following = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        count = f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        return _xml(f"<ListBucketResult>{count}{following}{found}</ListBucketResult>")

    def _entry(self, start: str, entry: str, *, is_prefix: bool) -> str:
        held = self._objects.get(start + entry)
        if is_prefix or held is None:
            return f"<CommonPrefixes><Prefix>{escape(entry)}</Prefix></CommonPrefixes>"
        facts = f"<Size>{held.size_bytes}</Size><ETag>&quot;{held.etag}&quot;</ETag>"
        when = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass>"
        return f"<Contents><Key>{escape(entry)}</Key>{facts}{when}</Contents>"

    def _list_uploads(self, bucket: str) -> Answer:
        with self._lock:
            uploads = [(name, key.removeprefix(f"{bucket}/")) for name, (key, _) in self._uploads.items()]
        found = "".join(
            f"<Upload><Key>{escape(key)}</Key><UploadId>{name}</UploadId></Upload>" for name, key in uploads
        )
        return _xml(f"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{found}</ListMultipartUploadsResult>")

    # Objects

    def _put(self, request: Request, body: Held, *, is_part: bool) -> Answer:
        if is_part:
            with self._lock:
                self._upload(request)[1][int(request.query["partNumber"])] = body
        elif source := request.headers.get("x-amz-copy-source"):
            body = self._found("/" + source.strip("/"))
            self._place(request, body)
            return _xml(f"<CopyObjectResult><ETag>&quot;{body.etag}&quot;</ETag></CopyObjectResult>")
        else:
            self._place(request, body)
        return Answer(headers={"ETag": f'"{body.etag}"'})

    def _place(self, request: Request, held: Held) -> None:
        key = request.path.strip("/")
        with self._lock:
            if request.headers.get("if-none-match") == "*" and key in self._objects:
                raise Refused(412, "PreconditionFailed")
            replaced, self._objects[key] = self._objects.get(key), held
        _forget(replaced)

    def _create_upload(self, request: Request) -> Answer:
        name = f"upload-{next(self._numbers)}"
        with self._lock:
            self._uploads[name] = (request.path.strip("/"), {})
        bucket, _, key = request.path.strip("/").partition("/")
        place = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
        return _xml(
            f"<InitiateMultipartUploadResult>{place}<UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
        )

    def _complete(self, request: Request) -> Answer:
        with self._lock:
            parts = [part for _, part in sorted(self._upload(request)[1].items())]
        size_bytes = sum(part.size_bytes for part in parts)
        etag = f"{next(self._numbers):032x}-{len(parts)}"
        self._place(request, Held(size_bytes, etag, files=tuple(file for part in parts for file in part.files)))
        with self._lock:
            self._uploads.pop(request.query["uploadId"], None)
        bucket, _, key = request.path.strip("/").partition("/")
        place = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><ETag>&quot;{etag}&quot;</ETag>"
        return _xml(f"<CompleteMultipartUploadResult>{place}</CompleteMultipartUploadResult>")

    def _upload(self, request: Request) -> tuple[str, dict[int, Held]]:
        found = self._uploads.get(request.query["uploadId"])
        if found is None:
            raise Refused(404, "NoSuchUpload")
        return found

    def _delete(self, request: Request) -> Answer:
        if name := request.query.get("uploadId"):
            with self._lock:
                _, parts = self._uploads.pop(name, ("", {}))
            for part in parts.values():
                _forget(part)
        else:
            self._remove(request.path.strip("/"))
        return Answer(204)

    def _remove(self, key: str) -> None:
        with self._lock:
            held = self._objects.pop(key, None)
        _forget(held)

    def _found(self, path: str) -> Held:
        held = self._objects.get(path.strip("/"))
        if held is None:
            raise Refused(404, "NoSuchKey")
        return held

    def _get(self, request: Request) -> Answer:
        held = self._found(request.path)
        if (wanted := request.headers.get("if-match")) and wanted.strip('"') != held.etag:
            raise Refused(412, "PreconditionFailed")
        headers = {
            "ETag": f'"{held.etag}"',
            "Accept-Ranges": "bytes",
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            "Content-Type": "application/octet-stream",
        }
        first, last = _range(request.headers.get("range"), held.size_bytes)
        status, length = 200, last - first + 1
        if "range" in request.headers:
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{held.size_bytes}"
        if request.method == "HEAD":
            return Answer(status, headers=headers, length=length)
        if held.data is not None:
            return Answer(status, held.data[first : last + 1], headers=headers)
        if held.size_bytes and not held.files:
            raise Refused(410, "Discarded")
        return Answer(status, pieces=list(_cut(held.files, first, length)), headers=headers)


def _xml(text: str) -> Answer:
    return Answer(body=f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode())


def _entries(keys: list[str], prefix: str, delimiter: str) -> list[str]:
    """Keys, and the common prefixes that stand for those behind a delimiter, in order and each once."""
    if not delimiter:
        return keys
    found: dict[str, None] = {}
    for key in keys:
        head, mark, _ = key[len(prefix) :].partition(delimiter)
        found[prefix + head + mark] = None
    return list(found)


def _range(header: str | None, size_bytes: int) -> tuple[int, int]:
    """First and last byte."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None:
        return 0, size_bytes - 1
    if not match[1]:
        return max(0, size_bytes - int(match[2])), size_bytes - 1
    first, last = int(match[1]), min(int(match[2] or size_bytes - 1), size_bytes - 1)
    if first > last:
        raise Refused(416, "InvalidRange")
    return first, last


def _cut(files: tuple[Piece, ...], offset: int, length: int) -> Iterator[Piece]:
    for file in files:
        here = min(length, file.length - offset)
        if here > 0:
            yield Piece(file.path, offset, here)
            offset, length = 0, length - here
        else:
            offset -= file.length


def _forget(held: Held | None) -> None:
    for file in held.files if held is not None else ():
        file.path.unlink(missing_ok=True)
