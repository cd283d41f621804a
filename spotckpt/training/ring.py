"""A few buffers between a device that copies by itself and a memory that it cannot reach."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

Buffer = TypeVar("Buffer")
Load = TypeVar("Load")
Ticket = TypeVar("Ticket")


class Ring(Generic[Buffer, Load, Ticket]):
    """Lets the device fill buffers while those that it has filled are emptied.

    What the device does is passed in, so that the order can be tested without one. Never more is on its way than there
    are buffers, and none is filled again before it is empty.

    Args:
        buffers: each holds one load.
        fill: has the device copy the load into the buffer, without waiting; the ticket tells when it is there.
        wait: until the ticket is due.
        drain: copies what the buffer holds to where the load belongs.
    """

    def __init__(
        self,
        buffers: Sequence[Buffer],
        *,
        fill: Callable[[Load, Buffer], Ticket],
        wait: Callable[[Ticket], None],
        drain: Callable[[Buffer, Load], None],
    ) -> None:
        assert buffers
        self._free = deque(buffers)
        self._flying: deque[tuple[Load, Buffer, Ticket]] = deque()
        self._fill = fill
        self._wait = wait
        self._drain = drain

    def run(
        self, loads: Iterable[Load], *, given_up: Callable[[], bool], issued: Callable[[Ticket | None], None]
    ) -> None:
        """Copies all loads, in their order.

        Args:
            loads: what to copy.
            given_up: asked before each load; when it says yes, this returns early.
            issued: called once, when the device has been told of every load: with the ticket of the last one, after
                which it reads nothing more.
        """
        ticket = None
        try:
            for load in loads:
                if given_up():
                    return
                if not self._free:
                    self._land()
                buffer = self._free[0]
                ticket = self._fill(load, buffer)
                self._flying.append((load, self._free.popleft(), ticket))
            issued(ticket)
            while self._flying:
                self._land()
        finally:
            self._forget()

    def _land(self) -> None:
        load, buffer, ticket = self._flying[0]
        self._wait(ticket)
        self._drain(buffer, load)
        self._flying.popleft()
        self._free.append(buffer)

    def _forget(self) -> None:
        """After an error: the buffers are free once the device has let go of them."""
        while self._flying:
            _, buffer, ticket = self._flying.popleft()
            with suppress(RuntimeError):  # a device that has failed fills nothing any more
                self._wait(ticket)
            self._free.append(buffer)
