"""One call into C that a test ends: meanwhile no bytecode of its thread runs, whatever signals come."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable


def wait_in_native_call(until: Callable[[], None]) -> None:
    """Returns when `until`, which another thread calls, has returned.

    A locked mutex of C waits on through every signal, and the interpreter's lock is released: as in a long operation
    of torch, but as long as one likes.
    """
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # zeros: PTHREAD_MUTEX_INITIALIZER

    def unlock() -> None:
        try:
            until()
        finally:
            libc.pthread_mutex_unlock(mutex)

    libc.pthread_mutex_lock(mutex)
    thread = threading.Thread(target=unlock, name="until")
    thread.start()
    libc.pthread_mutex_lock(mutex)
    thread.join()
