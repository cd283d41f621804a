"""The bucket's own rule for uploads that nobody finishes: what a killed process left is billed until it is aborted.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpu-abort-incomplete-mpu-lifecycle-config.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spotckpt.deadline import Deadline
from spotckpt.errors import NotFound
from spotckpt.store.client import Call, Client


@dataclass(frozen=True)
class Expiry:
    """After how many days unfinished uploads are aborted, None if never; and how many rules the bucket has."""

    days: float | None
    num_rules: int


def read_expiry(uri: str, environment: Mapping[str, str], deadline: Deadline) -> Expiry:
    """Asks the bucket of `s3://bucket/prefix` what becomes of unfinished uploads below the prefix.

    Raises:
        StoreError: it does not say. Denied is the rule for a training's credentials.
    """
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    call = Call("read_expiry", uri, deadline)
    try:
        answer = Client.of(environment).request("get_bucket_lifecycle_configuration", call, Bucket=bucket)
    except NotFound:
        return Expiry(None, 0)
    rules = answer.get("Rules", [])
    return Expiry(days_of(rules, prefix), len(rules))


def days_of(rules: Iterable[Mapping[str, Any]], prefix: str) -> float | None:
    """The least days of the enabled rules that hold for every key below the prefix; None without one."""
    days = [
        float(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"])
        for rule in rules
        if rule.get("Status") == "Enabled" and "AbortIncompleteMultipartUpload" in rule and _holds(rule, prefix)
    ]
    return min(days, default=None)


def _holds(rule: Mapping[str, Any], prefix: str) -> bool:
    # Such a rule cannot ask for tags or sizes, so a filter is a prefix, or nothing.
    found = rule.get("Filter", {})
    wanted = found.get("Prefix") or found.get("And", {}).get("Prefix") or rule.get("Prefix") or ""
    return f"{prefix.rstrip('/')}/".startswith(wanted)
