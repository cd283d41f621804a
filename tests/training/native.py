"""One call into C that a test ends: meanwhile no bytecode of its thread runs, whatever signals come."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable


def wait_in_native_call(until: Callable[[], None]) -> None:
    """Returns when `until`, which another thread calls, has returned; raises what it raised.

    A locked mutex of C waits on through every signal, and the interpreter's lock is released: as in a long operation
    of torch, but as long as one likes.
    """
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # zeros: PTHREAD_MUTEX_INITIALIZER

    failed: list[BaseException] = []

    def unlock() -> None:
        time.sleep(0.2)  # by then the caller is inside
        try:
            until()
        except BaseException as error:  # noqa: BLE001  the caller raises it
            failed.append(error)
        finally:
            libc.pthread_mutex_unlock(mutex)

    libc.pthread_mutex_lock(mutex)
    thread = threading.Thread(target=unlock, name="until")
    thread.start()
    libc.pthread_mutex_lock(mutex)
    thread.join()
    if failed:
        raise failed[0]
