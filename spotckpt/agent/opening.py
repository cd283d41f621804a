"""Letting a trainer begin: no notice in force, nothing of an earlier life left behind, its turn, a claim."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from spotckpt.address import Selector
from spotckpt.agent.log import fields
from spotckpt.agent.processes import Process
from spotckpt.agent.run import Run
from spotckpt.agent.token import Token
from spotckpt.config import Keep, Settings
from spotckpt.deadline import Clock
from spotckpt.errors import AddressError, AgentError, UsageError
from spotckpt.notices.notice import AFTERMATH_S, Notice
from spotckpt.snapshot.attempts import ensure_run, take
from spotckpt.snapshot.open import open_run_store
from spotckpt.snapshot.records import Claim, Holder, RunRecord

_LOG = logging.getLogger(__name__)

_LOOK_S = 0.1
_SAY_EVERY_S = 60.0


class Abandoned(Exception):
    """The trainer that wanted to begin is gone: claim nothing for it."""


class House(Protocol):
    """What the opening needs of the agent."""

    def final_notice(self) -> Notice | None:
        """The notice that forbids to start, after the first look for one."""

    def run_of(self, uri: str) -> Run | None:
        """The run of that URI that this agent holds."""

    def is_attended(self, run: Run) -> bool:
        """Whether its trainer is connected."""

    def begin_opening(self, uri: str, trainer: Process) -> bool:
        """Reserves the URI; False if it is held or reserved, or another process has been promised it."""

    def promise(self, uri: str, trainer: Process) -> None:
        """Whoever takes a run over gets it, before those who only wait for it."""

    def end_opening(self, uri: str) -> None:
        """Gives the reservation back."""

    def add_run(self, token: Token, trainer: Process, environment: Mapping[str, str] | None, holder: Holder) -> Run:
        """Takes the new attempt into the spool and starts it."""

    def holder(self, trainer: Process) -> Holder:
        """This agent and that trainer."""


@dataclass(frozen=True)
class Request:
    """What the trainer asked for, checked.

    Raises:
        AddressError: the path is relative, so that it would mean something else here.
        UsageError: another field has a wrong type or value.
    """

    uri: str
    selector: str
    settings: Settings
    environment: Mapping[str, str] | None = field(repr=False)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> Request:
        """Reads the fields of `open`."""
        uri, given = message.get("uri"), message.get("settings") or {}
        if not isinstance(uri, str) or "://" not in uri:
            raise AddressError(f"run address {uri!r} is no URI", hint="write it as s3://bucket/path")
        if uri.startswith("file://") and not uri.startswith("file:///"):
            raise AddressError(f"run address {uri!r} is relative", hint="give the agent the absolute path")
        try:
            settings = Settings(
                stale_after_s=float(given.get("stale_after_s", Settings.stale_after_s)),
                call_timeout_s=float(given.get("call_timeout_s", Settings.call_timeout_s)),
                upload_every_s=float(given.get("upload_every_s", Settings.upload_every_s)),
                upload_limit=float(given.get("upload_limit", Settings.upload_limit)),
                keep=Keep.parse(str(given["keep"])) if given.get("keep") else None,
                takeover=bool(given.get("takeover", Settings.takeover)),
                reserve_s=float(given.get("reserve_s", Settings.reserve_s)),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"settings {given!r}: {error}", hint="give seconds") from error
        arguments = message.get("arguments") or {}
        if not isinstance(arguments, dict):
            raise UsageError("arguments are no object", hint="give name: value")
        selector = str(Selector.parse(str(message.get("selector") or "")))
        return cls(uri, selector, settings, parse_environment(message), arguments)


def parse_environment(message: Mapping[str, Any]) -> dict[str, str] | None:
    """The AWS_* variables in a message; None if it has none of its own."""
    given = message.get("environment")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise UsageError("environment is no object", hint="give NAME: value")
    return {str(name): str(value) for name, value in given.items()}


def open_run(
    house: House,
    request: Request,
    trainer: Process,
    *,
    check: Callable[[], None],
    say: Callable[[str], None],
    clock: Clock,
) -> Run:
    """Waits as long as it must, then claims.

    Args:
        house: the agent.
        request: what is wanted.
        trainer: who wants it.
        check: raises Abandoned when the trainer is gone; called all the time.
        say: told why it waits.
        clock: for waiting.

    Raises:
        Abandoned: nothing was claimed, or it was released at once.
        StoreError: the store does not work for this trainer.
        AgentError: this very process has the run open already.
    """
    porch = _Porch(house, request, trainer, check, say, clock)
    porch.enter()
    try:
        return porch.claim()
    finally:
        house.end_opening(request.uri)


@dataclass
class _Porch:
    house: House
    request: Request
    trainer: Process
    check: Callable[[], None]
    tell: Callable[[str], None]
    clock: Clock
    _said: str = ""
    _said_at: float = 0.0
    _handed_over: tuple[Run, int] | None = None
    _overtakes: Run | None = None

    def __post_init__(self) -> None:
        # only whoever is here now: of two that are impatient at once, one would else end the other
        if self.request.settings.takeover:
            self._overtakes = self.house.run_of(self.request.uri)

    def say(self, message: str) -> None:
        """At once if it is news, else now and again."""
        self.check()
        now = self.clock.now()
        if message != self._said or now - self._said_at >= _SAY_EVERY_S:
            self._said, self._said_at = message, now
            self.tell(message)

    def pause(self, why: str) -> None:
        self.say(why)
        self.clock.sleep(_LOOK_S)
        self.check()

    def enter(self) -> None:
        """Returns when no notice is in force and this agent holds nothing of the run, which is then reserved."""
        while True:
            self.check()
            self.wait_for_notices()
            if self.house.begin_opening(self.request.uri, self.trainer):
                return
            self.pause(self.occupied())

    def wait_for_notices(self) -> None:
        """A supervisor restarts faster than a doomed machine dies."""
        while (notice := self.house.final_notice()) is not None:
            remedy = "; if it is a mistake: spotckpt notify --clear" if notice.kind == "manual" else ""
            self.pause(
                f"not starting on this machine: {notice.kind} {notice.action} notice in force ({notice.id}), "
                f"which lapses {AFTERMATH_S / 60:.0f} min after its time{remedy}"
            )

    def occupied(self) -> str:
        """Who has the run here; lends an orphan our credentials, and fails if they do not help either."""
        run = self.house.run_of(self.request.uri)
        if run is None:
            return f"another process of this machine is opening {self.request.uri}"
        if not run.left and run.trainer == self.trainer:
            if self.house.is_attended(run):
                raise AgentError(f"{self.request.uri} is open in this process already", hint="close the first one")
            run.leave()  # its connection was lost before it knew of the attempt, or without a close
        if not run.left and run is self._overtakes:
            self.house.promise(self.request.uri, self.trainer)
            run.give_way(self.trainer)
        if not run.left:
            pid = f"process {run.trainer.pid}" if run.trainer else "another process"
            return f"{self.request.uri} is in use by {pid} on this machine"
        if self._handed_over is None or self._handed_over[0] is not run:
            run.use_environment(self.request.environment)
            self._handed_over = (run, run.uploads.backoff.failures)
        backoff = run.uploads.backoff
        if backoff.failure and backoff.failures > self._handed_over[1] and backoff.is_lasting:
            raise backoff.failure
        return f"the last snapshot of attempt {run.token.attempt} is being uploaded from this machine"

    def claim(self) -> Run:
        request = self.request
        store = open_run_store(
            request.uri, environment=request.environment, call_timeout_s=request.settings.call_timeout_s
        )
        record = ensure_run(store)
        holder = self.house.holder(self.trainer)

        def may_claim() -> None:
            self.wait_for_notices()
            self.check()

        claim = take(
            store,
            holder=holder,
            selector=request.selector,
            stale_after_s=request.settings.stale_after_s,
            takeover=request.settings.takeover,
            say=self.say,
            clock=_Watched(self.clock, may_claim),
            arguments=request.arguments,
            may_claim=may_claim,
        )
        of_run = fields(run=request.uri, attempt=claim.attempt)
        _LOG.info(
            "attempt %d of %s is claimed for process %d", claim.attempt, request.uri, self.trainer.pid, extra=of_run
        )
        return self.house.add_run(self.token(claim, record, holder), self.trainer, request.environment, holder)

    def token(self, claim: Claim, record: RunRecord, holder: Holder) -> Token:
        return Token(
            uri=self.request.uri,
            run_id=record.run_id,
            attempt=claim.attempt,
            nonce=claim.nonce,
            highest=claim.attempt - 1,
            trainer_pid=self.trainer.pid,
            trainer_start=self.trainer.start,
            boot_id=holder.boot_id,
            pid_namespace=holder.pid_namespace,
            stale_after_s=self.request.settings.stale_after_s,
            call_timeout_s=self.request.settings.call_timeout_s,
            upload_every_s=self.request.settings.upload_every_s,
            upload_limit=self.request.settings.upload_limit,
            reserve_s=self.request.settings.reserve_s,
            keep=str(self.request.settings.keep or ""),
        )


@dataclass(frozen=True)
class _Watched:
    """A clock whose sleeps look up: waiting for one's turn ends when there is nobody to wait for."""

    clock: Clock
    look: Callable[[], None]

    def now(self) -> float:
        return self.clock.now()

    def wall(self) -> float:
        return self.clock.wall()

    def sleep(self, seconds: float) -> None:
        until = self.clock.now() + seconds
        while (left := until - self.clock.now()) > 0:
            self.clock.sleep(min(left, _LOOK_S))
            self.look()
