"""SIGTERM as a flag that the train loop acts on.

The handler of Python runs between two bytecodes of the main thread, which one long operation in C++ delays by seconds;
the byte that the C handler writes to the wake-up descriptor arrives at once, so a thread of ours learns of the signal
even then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_installed: list[TermSignal] = []


@contextlib.contextmanager
def children_waiting() -> Iterator[None]:
    """The end of a child is handled afterwards, not inside.

    torch's handler of SIGCHLD raises the error of a DataLoader's worker that died, out of whatever the main thread does
    then: half a snapshot would be lost to it. If the body raises, that is the error to see.
    """
    before = signal.getsignal(signal.SIGCHLD)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    ended: list[FrameType | None] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: ended.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
    if ended:
        before(signal.SIGCHLD, ended[0])


class TermSignal:
    """Turns the first SIGTERM of this process into one call of `on_signal`, in a thread of its own.

    The previous handler is neither called (it would end the process in the middle of a step) nor lost: `close` puts it
    back, and so does a fork in the child, because a DataLoader worker must die of SIGTERM as usual.
    """

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self._on_signal = on_signal
        self._once = threading.Lock()
        self._previous: Any = None
        self._previous_fd = -1
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def install(self) -> bool:
        """Takes SIGTERM over. Only the main thread may; elsewhere nothing happens and False is returned."""
        if threading.current_thread() is not threading.main_thread():
            return False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._watch, args=(self._reader,), name="spotckpt-sigterm", daemon=True)
        self._thread.start()
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if self._previous_fd != -1:  # somebody else's event loop: it keeps it, the handler alone must do
            signal.set_wakeup_fd(self._previous_fd, warn_on_full_buffer=False)
        _installed.append(self)
        return True

    def close(self) -> None:
        """Gives SIGTERM back and ends the thread. Idempotent."""
        if self not in _installed:
            return
        _installed.remove(self)
        self._give_back()
        assert self._writer is not None
        self._writer.close()  # the thread reads the end of the stream
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Only hands the news to the thread: no lock is taken and nothing is raised between two bytecodes."""
        with contextlib.suppress(OSError):  # full: the news is there already
            if self._writer is not None:
                self._writer.send(bytes([signal.SIGTERM]))

    def _watch(self, reader: socket.socket) -> None:
        with reader:
            while received := reader.recv(64):
                if signal.SIGTERM in received and self._once.acquire(blocking=False):
                    self._on_signal()

    def _give_back(self) -> None:
        """Restores handler and wake-up descriptor, where they are still ours and this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._previous is None else self._previous)
        for later in _installed:  # closed in another order than opened: it must not put our handler back
            if later._previous == self._handle:
                later._previous = self._previous
        if self._previous_fd == -1 and self._writer is not None:
            current = signal.set_wakeup_fd(-1)
            if current not in (-1, self._writer.fileno()):
                signal.set_wakeup_fd(current)


def _forget_in_child() -> None:
    """A forked child is no trainer: its SIGTERM is its own, and its bytes must not wake the parent's thread."""
    while _installed:
        handler = _installed.pop()
        handler._give_back()
        for end in (handler._reader, handler._writer):
            if end is not None:
                end.close()


os.register_at_fork(after_in_child=_forget_in_child)
