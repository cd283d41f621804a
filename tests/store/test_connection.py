"""A connection by itself, against a socket that a test reads from or not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from spotckpt.deadline import Deadline
from spotckpt.store.base import MIB
from spotckpt.store.connection import Connection, Limits


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        yield listening


def test_what_the_kernel_merely_holds_does_not_count_as_gone(server: socket.socket) -> None:
    gone: list[int] = []
    limits = Limits(Deadline.after(1.0), sent=gone.append)
    connection = Connection(("http", "127.0.0.1", server.getsockname()[1]))
    connection.open(limits, proxy=None, tls=None)
    with pytest.raises(TimeoutError):
        connection.send(b"PUT / HTTP/1.1\r\n\r\n", [memoryview(bytes(16 * MIB))], limits)
    connection.close()
    assert sum(gone) <= MIB, "nobody reads"
