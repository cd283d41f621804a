"""Waiting for a run's uploads on behalf of its trainer: until all is committed, or given up, or the time is over."""

from __future__ import annotations

from collections.abc import Callable

from spotckpt.agent.protocol import Message, error_fields
from spotckpt.agent.uploading import Uploads
from spotckpt.deadline import Deadline
from spotckpt.errors import AgentError

_LOOK_S = 0.1


def drain(
    uploads: Uploads, deadline: Deadline, *, close: str | None, on_progress: Callable[[Message], None]
) -> Message:
    """Waits until nothing sealed is left to commit, or it is given up; then, to close, for the release.

    Giving up ends the waiting only: what is sealed stays in the spool, and the agent goes on trying.

    Args:
        uploads: the attempt's.
        deadline: until when to wait.
        close: why the attempt is over; None if it is not.
        on_progress: called, without the lock, with what is under way.

    Returns:
        committed, acknowledged, and failure if not acknowledged.
    """
    seen, shown = uploads.backoff.failures, (-1, "")
    uploads.queue.deadline = uploads.queue.deadline.within(deadline.seconds_left)
    uploads.queue.urgent = True
    if close is not None:
        uploads.leave(close)
    uploads.hurry()
    while True:
        with uploads.changed:
            if _is_settled(uploads, close is not None) or _is_hopeless(uploads, seen) or deadline.passed:
                return _outcome(uploads)
            uploads.changed.wait(min(deadline.seconds_left, _LOOK_S))
            transfer = uploads.sender.transfer
        # without the lock: a trainer that does not read must not hold up the run, and with it a notice for others
        if transfer is not None and (now_shown := (transfer.sent_bytes, transfer.id)) != shown:
            shown = now_shown
            on_progress(transfer.to_json())


def _is_settled(uploads: Uploads, close: bool) -> bool:
    if close:
        return uploads.ended
    return uploads.superseded is not None or uploads.idle


def _is_hopeless(uploads: Uploads, seen: int) -> bool:
    return uploads.backoff.failures > seen and uploads.backoff.is_lasting


def _outcome(uploads: Uploads) -> Message:
    token, failure = uploads.spool.token, uploads.superseded or uploads.dropped
    reply: Message = {"committed": token.last_committed, "acknowledged": False}
    if uploads.superseded is None and not uploads.idle:
        failure = uploads.backoff.failure or AgentError(
            f"{token.uri}: the newest snapshot is not uploaded yet",
            hint="the agent goes on as long as the machine lives",
        )
    return {**reply, "acknowledged": True} if failure is None else {**reply, "failure": error_fields(failure)}
