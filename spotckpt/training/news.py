"""What a training hears from its agent and its signals: flags that other threads set and the loop reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from spotckpt.agent.protocol import Message, to_error
from spotckpt.deadline import Deadline
from spotckpt.errors import (
    AgentError,
    Interrupted,
    OutcomeUnknown,
    SpotckptError,
    StopTraining,
    Superseded,
    Unavailable,
)
from spotckpt.snapshot.segments import Size
from spotckpt.training.say import say


@dataclass(frozen=True)
class Stop:
    """Why the training must stop.

    Attributes:
        why: for the user.
        deadline: when the machine goes; None: nobody knows.
        snapshot: whether there is time for one more snapshot.
    """

    why: str
    deadline: Deadline | None
    snapshot: bool = True


class News:
    """Flags of one run; the loop looks at `attention` and, if it is set, at the rest.

    Attributes:
        attention: something else has changed.
        stop: the training must stop.
        leaving: the machine will go, and the agent tells when to stop; None until then.
        early: a snapshot is wanted soon, though the training goes on.
        superseded: another attempt owns the run.
        committed: the newest acknowledged snapshot.
        opening: while the agent lets us wait, its notices are its own business.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.attention = False
        self.stop: Stop | None = None
        self.leaving: Stop | None = None
        self.early = False
        self.superseded: Superseded | None = None
        self.committed: str | None = None
        self.opening = True
        self._history: list[Message] = []
        self._errors: deque[SpotckptError] = deque()

    def raise_if_stopped(self) -> None:
        """Before the loop has begun there is nothing to save.

        Raises:
            Interrupted: the machine will go.
        """
        if self.stop is not None:
            raise Interrupted(f"{self.stop.why} before the training began; run it again")

    def raise_pending(self) -> None:
        """Raises what other threads have found, oldest first, and says what is no reason to stop.

        Raises:
            Superseded: another attempt owns the run.
            SpotckptError: the agent cannot save, and another try would not help.
        """
        self.attention = False  # before the flags are read: what comes later sets it again
        if self.superseded is not None:
            self.attention = True
            raise self.superseded
        if self.stop is not None:
            self.attention = True
            return
        while self._errors:
            error = self._errors.popleft()
            if not isinstance(error, Unavailable | OutcomeUnknown | AgentError):
                raise error
            say(f"warning: {error}; training goes on, the agent tries again")

    def hear(self, message: Message) -> None:
        """Takes an event of the agent's. On the reader thread."""
        match message.get("event"):
            case "notice":
                self.hear_notice(message)
            case "plan" if message.get("uri") == self.uri:
                self._follow(message)
            case "lost" if self.leaving is not None and self.stop is None:
                self.stop_for(self.leaving)  # nobody will tell when
            case "committed" if message.get("uri") == self.uri:
                self.committed = message.get("id")
                self._history = [message]
                return
            case "discontinued" if message.get("uri") == self.uri:
                self._history = [message]
                self.early = True
            case "superseded" if message.get("uri") == self.uri:
                self.supersede(Superseded(f"another attempt owns {self.uri}; this one stops and writes nothing more"))
            case "error" if message.get("uri") == self.uri:
                self._hear_error(to_error(message))
            case "dropped" if message.get("uri") == self.uri:
                say(f"warning: {message.get('reason')} snapshot {message.get('id')} is dropped: the time is short")
                return
            case "warning" if message.get("uri") == self.uri:
                say(f"warning: {message.get('message')}")
                return
            case _:
                return
        self.attention = True

    def history(self) -> tuple[str | None, Sequence[Size]] | None:
        """The newest snapshot that was committed since the last call, and its segments of the metric history.

        Without an id: the next snapshot must bring all metrics. None: there is nothing new.
        """
        message = self._history.pop() if self._history else None
        if message is None or message["event"] == "discontinued":
            return None if message is None else (None, ())
        return str(message["id"]), [Size(*size) for size in message.get("history", ())]

    def supersede(self, error: Superseded) -> None:
        """Another attempt owns the run."""
        self.superseded = error
        self.attention = True

    def hear_notice(self, message: Message) -> None:
        """Takes a notice: after a final one the agent says how long to go on, a hint asks for an early snapshot."""
        if self.opening:  # the agent itself waits until it is over
            return
        if not message.get("final"):
            self.early = self.early or message.get("plan") != "continue"
            return
        self._follow(message)

    def _follow(self, message: Message) -> None:
        """Does as the agent has planned; without a plan the training stops."""
        plan, left = message.get("plan", "last"), message.get("seconds_left")
        deadline = None if left is None else Deadline.after(float(left))
        stop = Stop(f"{message.get('kind', 'spot')} notice ({message.get('action')})", deadline)
        if plan in ("continue", "snapshot"):
            if self.leaving is None:
                say(f"{stop.why}{_in_seconds(stop.deadline)}: training goes on as long as it can still be saved")
            self.early = self.early or plan == "snapshot"
        elif plan == "stop" and self.stop is None:
            say(f"no further snapshot is taken: {message.get('why')}")
        self.leaving = stop
        if plan in ("last", "stop"):
            self.stop_for(replace(stop, snapshot=plan == "last"))

    def _hear_error(self, error: SpotckptError | StopTraining) -> None:
        if isinstance(error, Superseded):
            self.superseded = error
        elif isinstance(error, SpotckptError):
            self._errors.append(error)

    def stop_for(self, stop: Stop) -> None:
        """The earlier deadline of two counts."""
        known = self.stop
        if known is None:
            say(f"{stop.why}{_in_seconds(stop.deadline)}: stopping at the next boundary")
            self.stop = stop
        elif stop.deadline is not None and (known.deadline is None or stop.deadline.at < known.deadline.at):
            self.stop = replace(known, deadline=stop.deadline)


def _in_seconds(deadline: Deadline | None) -> str:
    return "" if deadline is None else f", {deadline.seconds_left:.0f} s left"
