"""A forward proxy, as a company has one: it passes on whole requests, and tunnels to servers with TLS."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from tests.support.loop_server import LoopServer


class HttpProxy(LoopServer):
    """Serves while it is entered.

    Args:
        authorization: the only `Proxy-Authorization` that it accepts; empty: it does not ask.

    Attributes:
        asked: the first line of every request that it was sent.
    """

    def __init__(self, authorization: str = "") -> None:
        super().__init__()
        self.asked: list[str] = []
        self._authorization = authorization

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, _, rest = head.partition("\r\n")
            self.asked.append(first)
            if f"proxy-authorization: {self._authorization}".lower() in rest.lower() or not self._authorization:
                await self._pass(first, rest, reader, writer)
            else:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # who asked is gone
        finally:
            writer.close()

    async def _pass(self, first: str, rest: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, version = first.split()
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        up_reader, up_writer = await self._connect(url.hostname or "", url.port or 80)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            path = url.path + (f"?{url.query}" if url.query else "")
            up_writer.write(f"{method} {path} {version}\r\nConnection: close\r\n{rest}".encode("latin-1"))
        await asyncio.gather(_pour(reader, up_writer), _pour(up_reader, writer))


async def _pour(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass  # the other end is gone
    finally:
        target.close()
