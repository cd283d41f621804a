"""Sends a sealed slot: upload, one more look at the seal, commit. And how long to wait after a failure."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from spotckpt.agent.bandwidth import Bandwidth
from spotckpt.agent.protocol import Message
from spotckpt.agent.slots import Seal
from spotckpt.agent.spool import RunSpool
from spotckpt.agent.spool_slot import Sent, SpoolSlot
from spotckpt.deadline import Clock, Deadline
from spotckpt.errors import OutcomeUnknown, SpoolError, SpotckptError, StoreError, Unavailable
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.retention import RESTART_AGE_S
from spotckpt.snapshot.reuse import Previous
from spotckpt.snapshot.save import commit, find_previous, upload
from spotckpt.snapshot.segments import Discontinued, Size
from spotckpt.store.base import Store

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

BACKOFF_LIMIT_S = 60.0
SLOWEST_BYTES_PER_S = 1e6
_LONGEST_LOOK_S = 10.0
"""For the parent's table; after a notice the time is better spent on sending everything."""


class UnreadableSlot(SpoolError):
    """What the trainer wrote cannot be read, and never will be."""


class GivenUp(SpoolError):
    """The upload was ended for a newer snapshot."""


@dataclass
class Transfer:
    """The upload under way.

    Attributes:
        id: the snapshot.
        total_bytes: what is to be sent of it.
        began: on the agent's clock.
        sent_bytes: what the store has confirmed.
        gone_bytes: what has gone over the line, confirmed or not, and more than once if it was lost.
        given_up: it shall end.
    """

    id: str
    total_bytes: int
    began: float
    sent_bytes: int = 0
    gone_bytes: int = 0
    given_up: bool = False

    @property
    def left_bytes(self) -> int:
        """What is not on its way yet, as far as can be told."""
        return max(0, self.total_bytes - max(self.sent_bytes, self.gone_bytes))

    def check(self) -> None:
        """Raises GivenUp if it shall end."""
        if self.given_up:
            raise GivenUp(f"{self.id} is given up for a newer snapshot", hint="that one is on its way")

    def to_json(self) -> Message:
        """As in `status` and in the event `progress`: headers and tables, which nobody planned, count for no more."""
        return {
            "id": self.id,
            "sent_bytes": min(self.sent_bytes, self.total_bytes),
            "gone_bytes": self.gone_bytes,
            "total_bytes": self.total_bytes,
        }


class Sender:
    """Sends one run's slots, one at a time.

    Attributes:
        store: where to; it tells `gone`. With other credentials when there are some.
        transfer: what is being sent, or None.
        share: of the last snapshot's bytes, how much was sent: unchanged tensors are not.
        copy_s: from the last snapshot's boundary to its seal.
        commit_s: what its upload took beside its bytes.
        saved_at: when what was committed last was captured, on the agent's clock.
        history_sizes: of the segments of its metric history.
    """

    def __init__(
        self,
        spool: RunSpool,
        store: Store,
        *,
        require_ours: Callable[[], None],
        rename: Callable[[SpoolSlot], SnapshotId | None],
        slowest: float | None,
        clock: Clock,
    ) -> None:
        """Args.

        `require_ours` raises Superseded once a later attempt is known; `rename`: see `RunSpool`, `slowest`: `Commons`.
        """
        self._spool = spool
        self._rename = rename
        self._slowest = slowest
        self.store = store
        self._require_ours = require_ours
        self._clock = clock
        self._previous: Previous | None = None
        self._line = Bandwidth()
        self._measuring = threading.Lock()
        self.transfer: Transfer | None = None
        self.share = 1.0
        self.copy_s = self.commit_s = self.saved_at = 0.0
        self.history_sizes: list[Size] = []

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second, as measured: of what is being sent, else of what was; None before anything was."""
        with self._measuring:
            return self._line.estimate(self._clock.now())

    def gone(self, size_bytes: int) -> None:
        """So many bytes went over the line. From any thread of a transfer; ends one that is given up."""
        transfer = self.transfer
        if transfer is not None:
            transfer.check()
            with self._measuring:
                transfer.gone_bytes += size_bytes
                self._line.sent(self._clock.now(), transfer.gone_bytes)

    def send(self, slot: SpoolSlot, seal: Seal) -> str:
        """Returning means acknowledged. Trying again after an error goes on where it can.

        What was sent so long ago that it might be swept (the machine slept) is sent again, under another id: the first
        manifest may be on its way, and names what lies under the first.

        Returns:
            The id under which it is committed.

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
        sent, bytes_s = _read(slot, SpoolSlot.sent), None
        if sent is None or self._is_old(sent):
            sent, bytes_s = self._upload(slot, seal, still_valid, anew=sent is not None)
            slot.keep_sent(sent)
        still_valid()
        if self._is_old(sent):
            days = RESTART_AGE_S / 86400
            hint = "it is sent again, under another id"
            raise SpoolError(f"the upload of {sent.manifest.snapshot} began over {days:g} days ago", hint=hint)
        commit(self.store, sent.manifest)
        self.history_sizes = [one.size for one in sent.manifest.history]
        now = self._clock.now()
        self.saved_at = now - (self._clock.wall() - sent.manifest.created)
        if bytes_s is not None:
            self.commit_s = now - sent.began - bytes_s
        return str(sent.manifest.snapshot)

    def _is_old(self, sent: Sent) -> bool:
        return self._clock.now() - sent.began > RESTART_AGE_S

    def _upload(
        self, slot: SpoolSlot, seal: Seal, still_valid: Callable[[], None], *, anew: bool
    ) -> tuple[Sent, float]:
        """What to commit, and how many seconds bytes were under way; `anew`: under another id."""
        staged = _read(slot, SpoolSlot.staged)
        if anew:
            another = self._rename(slot)
            if another is None:
                raise UnreadableSlot(f"{seal.id} waited for days", hint="a newer snapshot is sent in its place")
            staged = replace(staged, id=str(another))
        self.copy_s = max(staged.timings.get("stage", 0.0), staged.timings.get("copy", 0.0))
        transfer = Transfer(seal.id, seal.data_bytes, self._clock.now())
        token = self._spool.token

        began_at = confirmed_at = transfer.began

        def progress(sent: int) -> None:
            nonlocal confirmed_at
            transfer.check()
            with self._measuring:
                transfer.sent_bytes += sent
                confirmed_at = self._clock.now()
                if transfer.sent_bytes > transfer.gone_bytes:  # the store does not tell what goes
                    transfer.gone_bytes = transfer.sent_bytes
                    self._line.sent(confirmed_at, transfer.gone_bytes)

        def planned(count: int) -> None:
            nonlocal began_at, confirmed_at
            transfer.check()
            transfer.total_bytes = max(transfer.sent_bytes, transfer.gone_bytes) + count
            if not transfer.gone_bytes:
                began_at = confirmed_at = self._clock.now()
                with self._measuring:
                    self._line.begin(began_at)

        # a line that is slower is hardly a line; but what the user's limit slows down must still end
        limits = [limit for limit in (token.upload_limit, self._slowest) if limit]
        slowest = min([SLOWEST_BYTES_PER_S, *(limit / 2 for limit in limits)])
        self.transfer = transfer
        try:
            manifest, self._previous = upload(
                self.store,
                staged,
                slot.view(seal.data_bytes),
                run_id=token.run_id,
                parent=token.parent,
                lost=token.lost,
                previous=self._known_parent(),
                deadline=Deadline.after(token.call_timeout_s + seal.data_bytes / slowest, self._clock),
                progress=progress,
                planned=planned,
                still_valid=still_valid,
                say=_LOG.warning,
                clock=self._clock,
            )
        except BaseException as error:
            self._ended(self._clock.now(), whole=False)
            if isinstance(error, Discontinued):
                raise UnreadableSlot(f"{seal.id} cannot be committed: {error.message}", hint=error.hint) from error
            raise
        self._ended(confirmed_at, whole=True)
        self.share = min(1.0, transfer.total_bytes / max(seal.data_bytes, 1))
        return Sent(manifest, transfer.began), confirmed_at - began_at

    def _ended(self, at: float, *, whole: bool) -> None:
        with self._measuring:
            self._line.end(at, whole=whole)

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
        return find_previous(self.store, parent, run_id=token.run_id, say=_LOG.warning, deadline=deadline)


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
    """The last failure since a success, and when to try again.

    Attributes:
        limit_s: the longest pause.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._retry_at = 0.0
        self.limit_s = BACKOFF_LIMIT_S
        self.failure: SpotckptError | None = None
        self.failures = 0

    def failed(self, error: SpotckptError) -> bool:
        """Notes a failure; whether it is another one than before: of the next snapshot the same is no news."""
        news = self.failure is None or _trouble(self.failure) != _trouble(error)
        self.failure = error
        self.failures += 1
        # jitter only shortens: the cap is kept, and machines that failed together do not return together
        pause = min(self.limit_s, 2.0 ** min(self.failures - 1, 10)) * random.uniform(0.5, 1.0)
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
