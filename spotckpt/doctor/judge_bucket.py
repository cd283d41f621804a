"""Verdicts on the store: may it be used, does it do what it must, is it kept clean."""

from __future__ import annotations

import json
from collections.abc import Iterator

from spotckpt.doctor.facts import Bucket, Permission
from spotckpt.doctor.row import Row, Verdict

CLOCK_OFF_S, CLOCK_WRONG_S = 30.0, 300.0
"""S3 refuses everything from 15 minutes on."""
_EXPIRY_DAYS = 7
_ACTIONS = {
    "put": "s3:PutObject",
    "conditional put": "s3:PutObject",
    "get": "s3:GetObject",
    "list": "s3:ListBucket",
    "multipart": "s3:PutObject",
    "abort": "s3:AbortMultipartUpload",
    "list uploads": "s3:ListBucketMultipartUploads",
    "delete": "s3:DeleteObject",
}
_OF_BUCKET = ("list", "list uploads")
_POLICIES = {"delete": "deploy/aws/prune-policy.json"}
_WITHOUT = {
    "abort": "unfinished uploads stay until a lifecycle rule aborts them",
    "list uploads": "what killed processes left is found by a lifecycle rule only",
    "delete": "only pruning needs it",
}
"""What becomes of a training that lacks these; it lives without them."""


def bucket_rows(bucket: Bucket) -> Iterator[Row]:
    """One for whether it can be used, one for each permission, and those of what keeps it clean."""
    if bucket.trouble:
        yield Row("store", bucket.trouble, "does not fit", bucket.hint or "check the address")
        return
    yield Row("store", f"answers in {bucket.round_trip_s * 1000:.0f} ms", "fits")
    for permission in bucket.permissions:
        yield _permission(permission, bucket)
    yield _clock(bucket)
    if bucket.is_s3:
        yield _lifecycle(bucket)


def _permission(one: Permission, bucket: Bucket) -> Row:
    if one.allowed:
        return Row(one.name, "If-None-Match is honoured" if one.name == "conditional put" else "allowed", "fits")
    if one.name == "conditional put" and one.allowed is False and "ignored" in one.why:
        remedy = "use a store with conditional writes: S3, SeaweedFS, LocalStack, a directory"
        return Row(one.name, one.why, "does not fit", remedy)
    verdict: Verdict = "does not fit"
    found = one.why
    if one.name in _WITHOUT:
        found = f"{one.why}; {_WITHOUT[one.name]}"
        verdict = "advice" if one.name == "abort" and bucket.expiry_days is None else "-"
    return Row(one.name, found, verdict, _remedy(one, bucket))


def _remedy(one: Permission, bucket: Bucket) -> str:
    if one.allowed is None or not bucket.is_s3:
        return one.hint
    name, _, prefix = bucket.uri.partition("://")[2].partition("/")
    resource = f"arn:aws:s3:::{name}" if one.name in _OF_BUCKET else f"arn:aws:s3:::{name}/{prefix}/*"
    policy = _POLICIES.get(one.name, "deploy/aws/trainer-policy.json")
    return f"allow {_ACTIONS[one.name]} on {resource}, as {policy} does"


def _clock(bucket: Bucket) -> Row:
    if bucket.clock_ahead_s is None:
        return Row("clock", "the store does not tell its time", "-")
    off_s = abs(bucket.clock_ahead_s)
    side = "behind" if bucket.clock_ahead_s > 0 else "ahead of"
    found = "within a second of the store's" if off_s < 1 else f"this machine's is {off_s:.0f} s {side} the store's"
    if off_s < CLOCK_OFF_S:
        return Row("clock", found, "fits")
    remedy = "timedatectl set-ntp true; on EC2 chrony with `server 169.254.169.123 prefer iburst`"
    return Row("clock", found, "advice" if off_s < CLOCK_WRONG_S else "does not fit", remedy)


def _lifecycle(bucket: Bucket) -> Row:
    name = bucket.uri.partition("://")[2].partition("/")[0]
    if bucket.expiry_unknown:
        remedy = (
            f"allow s3:GetLifecycleConfiguration, or have somebody look who may: "
            f"aws s3api get-bucket-lifecycle-configuration --bucket {name}"
        )
        return Row("lifecycle rule", f"not known: {bucket.expiry_unknown}", "-", remedy)
    if bucket.expiry_days is not None:
        return Row("lifecycle rule", f"unfinished uploads are aborted after {bucket.expiry_days:g} days", "fits")
    return Row("lifecycle rule", "none aborts unfinished uploads, which are billed", "advice", _add_rule(name, bucket))


def _add_rule(name: str, bucket: Bucket) -> str:
    rule = {
        "ID": "abort-unfinished-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _EXPIRY_DAYS},
    }
    if bucket.num_rules:  # the command replaces all rules that there are
        return f"add to the {bucket.num_rules} rules of the bucket's lifecycle: {json.dumps(rule)}"
    wanted = json.dumps({"Rules": [rule]})
    return f"aws s3api put-bucket-lifecycle-configuration --bucket {name} --lifecycle-configuration '{wanted}'"
