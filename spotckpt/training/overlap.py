"""A copy that goes on while the next forward and backward run, and is over before any optimizer steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from torch.utils.hooks import RemovableHandle

from spotckpt.errors import SpotckptError
from spotckpt.training.copying import Copy
from spotckpt.training.pinned import Ticket, is_capturing, wait_on_stream


class Overlap:
    """The late rows of one copy, on a thread of its own, and then the seal.

    Until `join` has returned nothing may change what is copied; that is what the optimizers' pre-step hooks see to. If
    something did change all the same, the snapshot is torn and not sealed.

    Args:
        copy: whose other rows are copied already.
        rows: to copy.
        optimizers: whose next step waits.
        seal: makes the snapshot exist, or gives its slot back; called on the thread, if it is not torn.
        discard: called on the thread, if there is nothing to seal.
    """

    def __init__(
        self,
        copy: Copy,
        rows: Sequence[int],
        optimizers: Iterable[torch.optim.Optimizer],
        *,
        seal: Callable[[], None],
        discard: Callable[[], None],
    ) -> None:
        self._copy = copy
        self._rows = rows
        self._seal = seal
        self._discard = discard
        self._samples = copy.samples(rows)
        self._versions = copy.versions(rows)
        self._tickets: Sequence[Ticket] = ()
        self._read, self._done = threading.Event(), threading.Event()
        self._given_up = False
        self._error: BaseException | None = None
        self.torn = False
        self._optimizers = optimizers
        self._hooks: list[RemovableHandle] = []
        self._thread = threading.Thread(target=self._work, name="spotckpt-copy", daemon=True)

    def start(self) -> None:
        """Begins.

        Raises:
            RuntimeError: there is no thread to be had; nothing has begun.
        """
        self._thread.start()
        self._hooks = [one.register_step_pre_hook(lambda *_: self.join()) for one in self._optimizers]

    def join(self) -> None:
        """Returns when the tensors may change again; what goes wrong is `settle`'s to tell."""
        self._read.wait()
        if not self._tickets:
            return
        if is_capturing():  # a captured stream waits for no event from outside of its graph
            self._done.wait()
        else:
            wait_on_stream(self._tickets)

    def settle(self) -> None:
        """Waits for the end and takes the hooks off.

        Raises:
            SpotckptError, OSError, RuntimeError: what the copying thread met; nothing is sealed.
        """
        self._done.wait()
        self._thread.join()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Ends the copy, as soon as may be, without a seal."""
        self._given_up = True

    def _work(self) -> None:
        try:
            if self._stands():
                self._seal()
        except BaseException as error:  # noqa: BLE001  the top of a thread: the loop raises it where it settles
            self._error = error
        finally:
            self._read.set()
            self._done.set()

    def _stands(self) -> bool:
        """Copies; whether there is something to seal."""
        stands = False
        try:
            self._copy.run(self._rows, beside=True, given_up=lambda: self._given_up, issued=self._issued)
            self.torn = self.torn or not self._copy.stands(self._samples)
            stands = not self.torn and not self._given_up
        finally:
            if not stands:
                with suppress(SpotckptError):
                    self._discard()
        return stands

    def _issued(self, tickets: Sequence[Ticket]) -> None:
        """All is read, or will be before those events: from here on the tensors may change."""
        self.torn = self._copy.versions(self._rows) != self._versions
        self._tickets = tickets
        self._read.set()
