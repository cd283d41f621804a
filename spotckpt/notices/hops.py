"""How far an answer of the metadata service gets.

The packets with a token's answer leave with the instance's response hop limit as their time to live, and each router on
the way takes one off: with a limit of 1 nothing arrives in a container that is not on the host's network. A socket may
refuse packets that arrive with less than it wants (ip(7), IP_MINTTL), so whether a second hop would be reached is asked
without leaving the first.
"""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

from spotckpt.notices.ec2 import TOKEN_TTL_S

_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73
_ASKED = 2


def hops_left(endpoint: str, *, timeout_s: float = 2.0) -> int | None:
    """1 if the token's answer arrives here and would get no further, 2 if it would; None if none arrives.

    Args:
        endpoint: `http://HOST[:PORT]`.
        timeout_s: of each of at most two requests.
    """
    for least in (_ASKED, 1):
        try:
            _ask(endpoint, least, timeout_s)
        except TimeoutError:
            continue
        except (OSError, http.client.HTTPException):
            return None
        return least
    return None


def _ask(endpoint: str, least: int, timeout_s: float) -> None:
    parts = urlsplit(endpoint)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)
    try:
        connection.connect()
        _refuse_below(connection.sock, least)
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S), "Content-Length": "0"}
        connection.request("PUT", "/latest/api/token", headers=headers)
        connection.getresponse().read(1024)
    finally:
        connection.close()


def _refuse_below(connected: socket.socket, least: int) -> None:
    if connected.family == socket.AF_INET6:
        connected.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, least)
    else:
        connected.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, least)
