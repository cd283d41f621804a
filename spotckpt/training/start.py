"""How a training begins: look, claim, list, choose, read what the choice holds; then, when it is restored, the base.

The order is what makes it safe. Only after the claim is the list final: a later commit of an earlier attempt finds our
claim and is not acknowledged. Tensors are read when it is known where they go, which may show that the choice is
damaged and the next one is to be taken. The base is recorded after that, and before anything of this attempt can be
staged; the chosen manifest is read again then, so that a pruning that did not see the record yet is noticed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from spotckpt.address import NEWEST, Address, Selector
from spotckpt.errors import Corrupt, NotFound, NothingRestorable, Pruned, SnapshotError, SpotckptError, Superseded
from spotckpt.snapshot.arrival import Source
from spotckpt.snapshot.catalog import Catalog, read_catalog
from spotckpt.snapshot.choose import Choice, choose
from spotckpt.snapshot.fetch import evaluated_of, pick, read_manifest
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.open import open_run_store
from spotckpt.snapshot.part import Part
from spotckpt.store.base import Store
from spotckpt.training.arguments import changed, describe, overridden
from spotckpt.training.environment import describe_environment
from spotckpt.training.fetching import Saved, fetch
from spotckpt.training.nearby import slot_bytes
from spotckpt.training.request import Request
from spotckpt.training.say import say
from spotckpt.training.session import Session
from spotckpt.training.witness import require_the_drills

RELEASE_S = 5.0
PID_1 = (
    "warning: this process is PID 1 of its container: if it is killed, or fails, the agent dies with it, and what is "
    "not uploaded by then is lost; start it with an agent beside it: spotckpt exec -- CMD"
)

Say = Callable[[str], None]


@dataclass
class Beginning:
    """Where a training stands before its first step.

    Attributes:
        request: what was asked for.
        session: the attempt that this process holds; None if it holds none (disabled, or the run is finished).
        saved: the snapshot to go on from.
        initial: a snapshot of another run whose weights to start from.
        finished: the run is over, and no attempt is held.
        choice: what `saved` was taken from.
        damaged: snapshots found to be, and why.
        said: what was said about them.
        run_id: of the run.
        followed: the selector was followed by an earlier attempt, so the training goes on from the newest.
        arguments: of the train function, as they are recorded.
        environment: as it is recorded.
        overrides: arguments that the run, a fork, sets in place of the caller's.
    """

    request: Request
    session: Session | None = None
    saved: Saved | None = None
    initial: Saved | None = None
    finished: bool = False
    choice: Choice | None = None
    damaged: dict[SnapshotId, SpotckptError] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    run_id: str | None = None
    followed: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments_changed(self) -> dict[str, tuple[Any, Any]]:
        """Which arguments differ from those of the snapshot: name → (old, new)."""
        return {} if self.saved is None else changed(self.saved.manifest.arguments, self.arguments)

    def take_overrides(self, catalog: Catalog) -> None:
        """The arguments are the run's, where it is a fork that sets some.

        Raises:
            UsageError: the training takes no such argument.
        """
        if catalog.run is None or not catalog.run.overrides:
            return
        self.overrides = dict(catalog.run.overrides)
        given = describe(self.request.arguments)
        self.request = replace(self.request, arguments=overridden(self.request.arguments, self.overrides))
        self.arguments = describe(self.request.arguments)
        for name, (old, new) in changed(given, self.arguments).items():
            say(f"argument {name} is {new!r}, as this fork sets it, in place of {old!r}")

    def near(self, snapshot: SnapshotId, part: Part) -> Source | None:
        """The copy of a snapshot that an earlier attempt left on this machine, if there is one."""
        found = None if self.session is None else self.session.where(str(snapshot))
        return None if found is None else slot_bytes(*found, part)

    def check(self) -> None:
        """Raises Interrupted if there is no time to begin."""
        if self.session is not None:
            self.session.news.raise_if_stopped()


def begin(request: Request) -> Beginning:
    """Brings a training to where its last attempt ended, and says so.

    Raises:
        SpotckptError: nothing was claimed, or what was claimed is released again.
        Interrupted: the machine goes before the training began.
    """
    beginning = Beginning(request, arguments=describe(request.arguments), environment=describe_environment())
    address = request.address
    if address is None:
        say("disabled by SPOTCKPT_DISABLED: the training runs plainly and nothing is saved")
        return beginning
    require_the_drills(address.uri)
    with global_random_kept():
        store = open_run_store(address.uri, call_timeout_s=request.settings.call_timeout_s)
        beginning.saved = _finished_snapshot(store, beginning, address)
        if beginning.saved is not None:
            beginning.finished = True
            _say_finished(beginning, "nothing is claimed")
        else:
            _claim(store, beginning, address)
        _say_followed(beginning, address)
    _say_changes(beginning)
    return beginning


def claim_finished(beginning: Beginning) -> None:
    """Goes on with a finished run after all: claims it, provided that it still ends in the snapshot restored.

    Raises:
        Superseded: another attempt went on meanwhile.
    """
    address, restored = beginning.request.address, beginning.saved
    assert address is not None and restored is not None
    with global_random_kept():
        store = open_run_store(address.uri, call_timeout_s=beginning.request.settings.call_timeout_s)
        _claim(store, beginning, address, go_on=True)
        if beginning.saved is None or beginning.saved.id != restored.id:
            give_up(beginning)
            raise Superseded(f"another attempt went on with {address.uri} meanwhile; start again to follow it")
    beginning.finished = False


def fall_back(beginning: Beginning, error: SpotckptError) -> Saved:
    """The snapshot that the training goes on from turned out to be damaged: takes the next one.

    A finished run has not ended, then: an attempt is claimed to end it again.

    Raises:
        NothingRestorable: there is none.
    """
    address, damaged = beginning.request.address, beginning.saved
    assert address is not None and damaged is not None
    beginning.damaged[damaged.id] = error
    with global_random_kept():
        store = open_run_store(address.uri, call_timeout_s=beginning.request.settings.call_timeout_s)
        if beginning.session is None:
            beginning.finished = False
            _claim(store, beginning, address)
        else:
            _take(store, beginning)
            if beginning.saved is not None:
                say(f"going on from {beginning.saved.id} ({_where(beginning.saved)}) instead")
    assert beginning.saved is not None, "a fresh start has nothing that could be damaged"
    return beginning.saved


def record_base(beginning: Beginning) -> None:
    """Everything is restored: records what this attempt goes on from. From here on snapshots may be staged.

    Raises:
        NothingRestorable: it was deleted meanwhile.
        Interrupted: the machine goes before the training began.
    """
    session, choice, address, saved = beginning.session, beginning.choice, beginning.request.address, beginning.saved
    if session is None:
        return
    assert choice is not None and address is not None
    with global_random_kept():
        session.record_base(
            None if saved is None else str(saved.id),
            selector=str(NEWEST if choice.followed else address.selector),
            consumed=choice.consumed,
            skipped=choice.skipped(saved.id if saved else None),
        )
        if saved is not None:
            _read_again(open_run_store(address.uri, call_timeout_s=beginning.request.settings.call_timeout_s), saved)
            beginning.saved = saved.without_own()


@contextmanager
def global_random_kept() -> Iterator[None]:
    """Jittered retries draw from Python's global generator; a training must not notice that."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _finished_snapshot(store: Store, beginning: Beginning, address: Address) -> Saved | None:
    """The newest snapshot if the run is over with it. Looks before anything is claimed, so that a selector that matches
    nothing, a future format or a run without one good manifest end here and change nothing.
    """
    catalog = read_catalog(store)
    beginning.take_overrides(catalog)
    choice = _choose(store, catalog, catalog.highest + 1, address.selector, lambda text: None)
    beginning.followed = choice.followed
    picked = pick(store, choice, lambda snapshot: read_manifest(store, snapshot), lambda text: None)
    if picked is None or not picked[1].finished:
        return None
    if choice.candidates[0] != _choose(store, catalog, catalog.highest + 1, NEWEST, say).candidates[0]:
        return None  # a selector asks for another place than where the run ended
    try:
        beginning.choice = choice
        return fetch(store, picked[0]).with_own(check=beginning.check)
    except (SnapshotError, NotFound):  # not whole: an attempt that claims says so and takes the next older one
        return None


def _claim(store: Store, beginning: Beginning, address: Address, *, go_on: bool = False) -> None:
    """Claims an attempt and brings it to where it goes on; with `go_on` from the end of a finished run too."""
    request = beginning.request
    if os.getpid() == 1:
        say(PID_1)
    session = Session(address.uri, request.settings)
    beginning.session = session
    try:
        beginning.run_id = session.open(address.selector, beginning.arguments)["run_id"]
        catalog = read_catalog(store, before=session.attempt)
        choice = _choose(store, catalog, session.attempt, address.selector, say)
        beginning.followed, beginning.choice = choice.followed, choice
        _take(store, beginning)
        if not go_on and _has_finished(beginning, choice, address.selector):
            session.news.raise_if_stopped()
            give_up(beginning)
            beginning.finished = True
            _say_finished(beginning, f"attempt {session.attempt} is released")
            return
        if beginning.saved is None and request.init_from is not None:
            beginning.initial = _fetch_initial(request.init_from, request.settings.call_timeout_s)
            beginning.environment["init_from"] = f"{request.init_from.uri}@{beginning.initial.id}"
        session.started()
    except BaseException:
        give_up(beginning)
        raise
    _say_beginning(beginning, catalog, choice)


def _has_finished(beginning: Beginning, choice: Choice, selector: Selector) -> bool:
    """Whether the newest snapshot ends the run: another start finished it while this one waited for its turn."""
    saved = beginning.saved
    if saved is None or not saved.manifest.finished or saved.id != choice.candidates[0]:
        return False
    return selector == NEWEST or beginning.followed


def _choose(
    store: Store, catalog: Catalog, before: int, selector: Selector, say: Say, *, claiming: bool = True
) -> Choice:
    run_id = catalog.run.run_id if catalog.run else None
    evaluated = evaluated_of(store, run_id=run_id, say=say)
    return choose(catalog, before, selector, evaluated=evaluated, claiming=claiming)


def _take(store: Store, beginning: Beginning) -> None:
    """The first candidate that is whole, as far as can be told without reading all of its bytes."""
    assert beginning.choice is not None

    def check(snapshot: SnapshotId) -> Saved:
        if snapshot in beginning.damaged:
            raise beginning.damaged[snapshot]
        saved = fetch(store, snapshot, run_id=beginning.run_id, near=beginning.near)
        return saved.with_own(check=beginning.check)

    def tell(text: str) -> None:
        if text not in beginning.said:
            beginning.said.add(text)
            say(text)

    picked = pick(store, beginning.choice, check, tell)
    beginning.saved = picked[1] if picked else None


def _read_again(store: Store, saved: Saved) -> None:
    try:
        read_manifest(store, saved.id)
    except (Corrupt, NotFound, Pruned) as error:
        raise NothingRestorable(
            f"snapshot {saved.id} of {store.uri} was deleted while it was restored: {error}", hint="start again"
        ) from error


def _fetch_initial(address: Address, call_timeout_s: float) -> Saved:
    """The weights of another run, by its own selector; its optimizer states and the like are not downloaded."""
    store = open_run_store(address.uri, call_timeout_s=call_timeout_s)
    snapshot, _ = find(store, address)
    return fetch(store, snapshot, wanted=lambda name, tree: tree.get("kind") == "module", own=lambda name: False)


def find(store: Store, address: Address) -> tuple[SnapshotId, Manifest]:
    """The snapshot that an address means, for a reader that claims nothing.

    Raises:
        NothingRestorable: the run has no snapshot.
        NoSuchSnapshot: the selector matches none.
    """
    catalog = read_catalog(store)
    choice = _choose(store, catalog, catalog.highest + 1, address.selector, say, claiming=False)
    picked = pick(store, choice, lambda snapshot: read_manifest(store, snapshot), say)
    if picked is None:
        raise NothingRestorable(f"{address} holds no snapshot", hint="check the address: spotckpt ls " + address.uri)
    return picked


def give_up(beginning: Beginning) -> None:
    """Lets the attempt go, so that another start, in this process too, need not wait for it."""
    session, beginning.session = beginning.session, None
    if session is None:
        return
    try:
        if session.attempt:
            with suppress(SpotckptError, Superseded):
                session.release(RELEASE_S, why="not begun")
    finally:
        session.close()


def _say_beginning(beginning: Beginning, catalog: Catalog, choice: Choice) -> None:
    assert beginning.session is not None
    uri, attempt = beginning.session.uri, beginning.session.attempt
    if beginning.saved is not None:
        say(f"resumed {uri} from {beginning.saved.id} ({_where(beginning.saved)}), attempt {attempt}")
        return
    say(f"new run {uri} (attempt {attempt})")
    if attempt > 1:
        say(choice.why)
    if beginning.initial is not None:
        say(f"weights from {beginning.environment['init_from']}")


def _say_finished(beginning: Beginning, claim: str) -> None:
    address, saved = beginning.request.address, beginning.saved
    assert address is not None and saved is not None
    say(f"finished run {address.uri} ({_where(saved)}): nothing to do unless its loops ask for more; {claim}")


def _say_followed(beginning: Beginning, address: Address) -> None:
    """Only the selector followed last has no effect: the same place under another name is gone back to."""
    if not beginning.followed:
        return
    selector = address.selector
    if selector.kind == "start":
        again = "to start afresh again use another run address"
    elif selector.kind == "id":
        again = f"to go back again write @step={SnapshotId.parse(selector.snapshot).step}"
    else:
        again = f"to go back again name the snapshot's full id (spotckpt ls {address.uri})"
    say(f"@{selector} was followed by an earlier attempt already: going on from there; {again}")


def _say_changes(beginning: Beginning) -> None:
    if beginning.saved is None:
        return
    before, now = beginning.saved.manifest.arguments, beginning.arguments
    for name, (old, new) in beginning.arguments_changed.items():
        if name not in now:
            say(f"argument {name} is gone (was {old!r})")
        elif name not in before:
            say(f"argument {name} is new: {new!r}")
        else:
            say(f"argument {name} changed: {old!r} → {new!r}")
    theirs = beginning.arguments_changed.keys() - beginning.saved.manifest.overrides.keys()
    if any(name in before and name in now for name in theirs):
        say('restored state keeps its values: track(..., override={"optimizer": ["lr"]}) takes yours')
    old_code = beginning.saved.manifest.environment.get("code_revision")
    new_code = beginning.environment.get("code_revision")
    if old_code and new_code and old_code != new_code:
        say(f"code revision changed: {str(old_code)[:12]} → {str(new_code)[:12]}")


def _where(saved: Saved) -> str:
    at = saved.own.get("at", {})
    epoch = f", epoch {saved.manifest.epoch}" if saved.manifest.epoch >= 0 else ""
    return f"step {saved.manifest.step}{epoch}, batch {at.get('batch', 0)}"
