"""How a run ends: by returning, by an exception, by a signal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spotckpt.training.request import Request
from spotckpt.training.run import Run
from spotckpt.training.start import begin, give_up


@contextmanager
def running(request: Request) -> Iterator[Run]:
    """Begins a run and ends it as its body ends.

    Returning commits the final snapshot. Any exception (`SystemExit` and Ctrl-C too) captures nothing, waits for what
    was sealed before, releases the run and goes on its way.

    Raises:
        SpotckptError, Interrupted, Superseded: see `begin` and `Saver`.
    """
    beginning = begin(request)
    try:
        run = Run(beginning)
    except BaseException:
        give_up(beginning)
        raise
    try:
        yield run
        run._check_complete()
        run._returned()
    except BaseException as error:
        run._left(error)
        raise
    finally:
        run._close()
