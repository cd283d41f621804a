"""What S3 and its client say becomes an error of ours here and nowhere else.

What matters most is the difference between *failed* and *unknown*: a write whose answer was lost may have landed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp

from spotckpt.deadline import SYSTEM_CLOCK
from spotckpt.errors import (
    AlreadyExists,
    BucketMissing,
    ConditionsIgnored,
    Denied,
    NoCredentials,
    NotFound,
    OutcomeUnknown,
    Replaced,
    StoreError,
    Unavailable,
)
from spotckpt.store.os_errors import from_os_error, one_line
from spotckpt.store.wire import CertificateRefused, WireError

CREDENTIALS_HINT = (
    "tried, in this order: the environment (AWS_ACCESS_KEY_ID), the profile's role, web identity, SSO and "
    "credentials file (~/.aws), the container's role, the instance's role (from a container only where the instance's "
    "metadata hop limit is 2); give one of them"
)
_ACTIONS = {
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject (and s3:ListBucket: without it S3 answers 403 for a missing object too)",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.ProfileNotFound,
    boto.TokenRetrievalError,
    boto.SSOError,
)
_BUSY = (Unavailable, "the store is busy or the connection poor: try again later")
_REGION = (StoreError, "set AWS_DEFAULT_REGION to the bucket's region")
_INVALID = (NoCredentials, "these credentials are not valid there: renew or replace them")
_THERE = (AlreadyExists, "another writer was there first")
EXPIRED = frozenset(
    ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired")
)
"""Refused for the credentials' sake alone: others, if there are any, may be accepted."""

_Verdict = tuple[type[StoreError], str]
_BY_CODE: dict[str, _Verdict] = {
    "AccessDenied": (Denied, ""),
    "NoSuchBucket": (BucketMissing, "create the bucket, or correct its name or the endpoint"),
    "NoSuchKey": (NotFound, ""),
    "PreconditionFailed": _THERE,
    "RequestTimeTooSkewed": (StoreError, "set this machine's clock (timedatectl set-ntp true)"),
    **dict.fromkeys((*EXPIRED, "SignatureDoesNotMatch"), _INVALID),
    **dict.fromkeys(
        ("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"),
        _REGION,
    ),
    # S3 did not carry these out, and they may go well at another time. A part whose upload is gone needs a new one.
    **dict.fromkeys(("SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException"), _BUSY),
    **dict.fromkeys(("RequestLimitExceeded", "RequestTimeout", "BadDigest", "IncompleteBody"), _BUSY),
    **dict.fromkeys(("XAmzContentSHA256Mismatch", "ConditionalRequestConflict", "OperationAborted"), _BUSY),
    "NoSuchUpload": _BUSY,
    "InvalidRange": (Unavailable, "the object is shorter than was said"),
}
_BY_STATUS: dict[int, _Verdict] = {
    301: _REGION,
    307: _REGION,
    401: _INVALID,
    403: (Denied, ""),
    404: (NotFound, ""),
    409: _BUSY,
    412: _THERE,
    429: _BUSY,
    503: _BUSY,
}


def translate(error: Exception, *, operation: str, key: str, mutates: bool) -> StoreError:
    """The error of ours that says the same.

    Args:
        error: what botocore, our connections, fsspec or the operating system raised.
        operation: the store's verb.
        key: the object with the store's URI.
        mutates: the request was a write, so that without an answer its outcome is unknown.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, boto.ClientError):
        return _answered(error, operation, key, mutates)
    if isinstance(error, OSError):
        return from_os_error(error, operation=operation, key=key)
    kind, hint = _unanswered(error, mutates)
    return kind(operation, key, one_line(error), hint=hint)


def stale_credentials(refusal: boto.ClientError, source: str, *, operation: str, key: str) -> NoCredentials:
    """The error for a service that gives credentials, which S3 refuses, again and again."""
    cause = _answered(refusal, operation, key, mutates=False).cause
    return NoCredentials(
        operation, key, f"{cause}; {source} gives no others", hint="check the role, and the service that gives its keys"
    )


def _unanswered(error: Exception, mutates: bool) -> _Verdict:
    if isinstance(error, _NO_CREDENTIALS):
        return NoCredentials, CREDENTIALS_HINT
    if isinstance(error, CertificateRefused | boto.SSLError):
        return StoreError, "check the endpoint's certificate, or set AWS_CA_BUNDLE"
    if isinstance(error, WireError) and not error.sent:
        return Unavailable, "check the endpoint's address and the network"
    if isinstance(error, WireError | boto.HTTPClientError | boto.ConnectionError | ResponseParserError):
        return OutcomeUnknown if mutates else Unavailable, "check the network"
    return StoreError, ""


def _answered(error: boto.ClientError, operation: str, key: str, mutates: bool) -> StoreError:
    response: Any = error.response
    said = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    headers = metadata.get("HTTPHeaders", {})
    code, status = str(said.get("Code", "")), int(metadata.get("HTTPStatusCode", 0))
    message = said.get("Message", "")
    cause = f"{error.operation_name} answered {status} {code}" + (f": {message}" if message not in ("", code) else "")
    kind, hint = _BY_CODE.get(code) or _BY_STATUS.get(status) or _otherwise(status, operation, mutates)
    if kind is AlreadyExists and not mutates:
        return Replaced(operation, key, "the object was replaced while it was read")
    if kind is Denied:
        hint = f"allow {_ACTIONS.get(error.operation_name, 'the action')} for these credentials"
    if code.startswith("KMS.") or "KMS" in message or "kms:" in message:
        kind, hint = _of_encryption(kind, code, headers)
    if code == "RequestTimeTooSkewed":
        cause += f"; {_offset(said, headers)}"
    if hint == _REGION[1]:
        region = said.get("Region") or headers.get("x-amz-bucket-region") or ""
        cause += f"; the bucket is in region {region or 'unknown'}"
        hint = f"set AWS_DEFAULT_REGION={region}" if region else hint
    return kind(operation, key, cause, hint=hint)


def _of_encryption(kind: type[StoreError], code: str, headers: Mapping[str, str]) -> _Verdict:
    """What S3 says of the key that encrypts the bucket: its message mostly names the key, a header does if set."""
    named = headers.get("x-amz-server-side-encryption-aws-kms-key-id", "")
    key = f"the bucket's KMS key {named}".rstrip()
    if "Throttling" in code or kind is Unavailable:
        return Unavailable, f"{key} is asked too often: raise its quota or use an S3 Bucket Key"
    if kind is Denied:
        return Denied, f"allow kms:GenerateDataKey and kms:Decrypt on {key} for these credentials"
    return StoreError, f"enable {key}, or encrypt the bucket with another"


def _offset(said: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """How far this machine's clock is from the store's."""
    theirs = said.get("ServerTime") or headers.get("date", "")
    try:
        offset_s = SYSTEM_CLOCK.wall() - parse_timestamp(theirs).timestamp()
    except (ValueError, OverflowError):
        return "the store does not say its time"
    return f"this machine's clock is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} the store's"


def _otherwise(status: int, operation: str, mutates: bool) -> _Verdict:
    if status == 501 and operation == "create":
        return ConditionsIgnored, "use a store that honours If-None-Match"
    if status == 501:  # nor will it be at another time
        return StoreError, "this store cannot do it: use another, or do without"
    if status >= 500:
        return OutcomeUnknown if mutates else Unavailable, "the store has trouble: try again later"
    return StoreError, ""
