"""Sends a sealed slot: upload, one more look at the seal, commit. And how long to wait after a failure."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from spotckpt.agent.protocol import Message
from spotckpt.agent.slots import Seal
from spotckpt.agent.spool import RunSpool, SpoolSlot
from spotckpt.deadline import Clock, Deadline
from spotckpt.errors import OutcomeUnknown, SpoolError, SpotckptError, StoreError, Unavailable
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.reuse import Previous
from spotckpt.snapshot.save import commit, find_previous, upload
from spotckpt.store.base import Store

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

BACKOFF_LIMIT_S = 60.0
SLOWEST_BYTES_PER_S = 1e6
_MEASURABLE_BYTES = 1 << 20
_LONGEST_LOOK_S = 10.0
"""For the parent's table; after a notice the time is better spent on sending everything."""


class UnreadableSlot(SpoolError):
    """What the trainer wrote cannot be read, and never will be."""


@dataclass
class Transfer:
    """The upload under way."""

    id: str
    total_bytes: int
    sent_bytes: int = 0

    def to_json(self) -> Message:
        """As in `status` and in the event `progress`."""
        return {"id": self.id, "sent_bytes": self.sent_bytes, "total_bytes": self.total_bytes}


class Sender:
    """Sends one run's slots, one at a time.

    Attributes:
        transfer: what is being sent, or None.
        bandwidth: bytes per second of the last upload that was long enough to tell.
        share: of the last snapshot's bytes, how much was sent: unchanged tensors are not.
    """

    def __init__(
        self,
        spool: RunSpool,
        *,
        store: Callable[[], Store],
        require_ours: Callable[[], None],
        slowest: float | None,
        clock: Clock,
    ) -> None:
        """Args: `require_ours` raises Superseded once a later attempt is known; `slowest`: see `Commons`."""
        self._spool = spool
        self._slowest = slowest
        self._store = store
        self._require_ours = require_ours
        self._clock = clock
        self._previous: Previous | None = None
        self.transfer: Transfer | None = None
        self.bandwidth: float | None = None
        self.share = 1.0

    def send(self, slot: SpoolSlot, seal: Seal) -> None:
        """Returning means acknowledged. Trying again after an error goes on where it can.

        Raises:
            UnreadableSlot: trying again is useless.
            Superseded: another attempt owns the run.
            SpotckptError: it is not known to be committed.
        """

        def still_valid() -> None:
            self._require_ours()
            if slot.seal() != seal:
                raise SpoolError(f"{slot.path} changed under the upload of {seal.id}", hint="it is not committed")

        still_valid()
        # once a manifest may have been put, by us or by an agent that died, the very same is put again: another
        # upload may choose other tensors to send, and its bytes would not be those that the first manifest names
        manifest = _read(slot, SpoolSlot.manifest)
        if manifest is None:
            manifest = self._upload(slot, seal, still_valid)
            slot.keep_manifest(manifest)
        still_valid()
        commit(self._store(), manifest)

    def _upload(self, slot: SpoolSlot, seal: Seal, still_valid: Callable[[], None]) -> Manifest:
        staged = _read(slot, SpoolSlot.staged)
        self.transfer = transfer = Transfer(seal.id, seal.data_bytes)
        token = self._spool.token

        def progress(sent: int) -> None:
            transfer.sent_bytes += sent

        def planned(count: int) -> None:
            transfer.total_bytes = transfer.sent_bytes + count

        # a line that is slower is hardly a line; but what the user's limit slows down must still end
        limits = [limit for limit in (token.upload_limit, self._slowest) if limit]
        slowest = min([SLOWEST_BYTES_PER_S, *(limit / 2 for limit in limits)])
        manifest, self._previous = upload(
            self._store(),
            staged,
            slot.view(seal.data_bytes),
            run_id=token.run_id,
            parent=token.parent,
            previous=self._known_parent(),
            deadline=Deadline.after(token.call_timeout_s + seal.data_bytes / slowest, self._clock),
            progress=progress,
            planned=planned,
            still_valid=still_valid,
            say=_LOG.warning,
            clock=self._clock,
        )
        seconds = manifest.timings["upload"]
        if transfer.sent_bytes >= _MEASURABLE_BYTES and seconds > 0:
            self.bandwidth = transfer.sent_bytes / seconds
        self.share = min(1.0, transfer.total_bytes / max(seal.data_bytes, 1))
        return manifest

    def _known_parent(self) -> Previous | None:
        """What the next snapshot may refer to."""
        token = self._spool.token
        if token.parent is None:
            return None
        parent, previous = SnapshotId.parse(token.parent), self._previous
        if previous is not None and previous.snapshot == parent:
            return previous
        # it was another attempt's or another agent's, or what we sent last was not committed
        deadline = Deadline.after(min(token.call_timeout_s, _LONGEST_LOOK_S), self._clock)
        return find_previous(self._store(), parent, run_id=token.run_id, say=_LOG.warning, deadline=deadline)


def _read(slot: SpoolSlot, what: Callable[[SpoolSlot], T]) -> T:
    try:
        return what(slot)
    except (SpotckptError, OSError) as error:
        raise UnreadableSlot(
            f"{slot.path} cannot be read: {error}", hint="the snapshot before it stays the newest"
        ) from error


def _trouble(error: SpotckptError) -> object:
    """What is wrong, whatever object it befell."""
    return type(error), error.cause if isinstance(error, StoreError) else str(error)


class Backoff:
    """The last failure since a success, and when to try again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._retry_at = 0.0
        self.failure: SpotckptError | None = None
        self.failures = 0

    def failed(self, error: SpotckptError) -> bool:
        """Notes a failure; whether it is another one than before: of the next snapshot the same is no news."""
        news = self.failure is None or _trouble(self.failure) != _trouble(error)
        self.failure = error
        self.failures += 1
        # jitter only shortens: the cap is kept, and machines that failed together do not return together
        pause = min(BACKOFF_LIMIT_S, 2.0 ** min(self.failures - 1, 10)) * random.uniform(0.5, 1.0)
        self._retry_at = self._clock.now() + pause
        return news

    def succeeded(self) -> None:
        """Forgets the failure. The count goes on: it tells those who wait that there was news."""
        self.failure = None
        self._retry_at = 0.0

    def hurry(self) -> None:
        """Ends the pause."""
        self._retry_at = 0.0

    @property
    def pausing(self) -> bool:
        """Whether it is too early to try again."""
        return self._clock.now() < self._retry_at

    @property
    def is_lasting(self) -> bool:
        """Whether there is a failure that another try will hardly mend."""
        return self.failure is not None and not isinstance(self.failure, Unavailable | OutcomeUnknown)
