"""Access keys that are valid at times only, at a server that takes any."""

from __future__ import annotations

import re

from tests.support.proxy import Proxy, Seen, answer

_REFUSAL = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class Keys:
    """Those that S3 behind a proxy accepts; requests that another one signed are answered `ExpiredToken`.

    Attributes:
        valid: may be changed at any time.
    """

    def __init__(self, proxy: Proxy, *valid: str) -> None:
        self.valid = set(valid)
        proxy.on("*", "", answer(400, _REFUSAL), times=float("inf"), when=lambda seen: key_of(seen) not in self.valid)


def key_of(seen: Seen) -> str:
    """The access key that signed the request; its session token must be the one that was given with it."""
    found = re.search(r"Credential=([^/]+)/", seen.headers.get("authorization", ""))
    key = found[1] if found else ""
    return key if seen.headers.get("x-amz-security-token") == f"token-{key}" else ""
