"""What the verbs on a run share: reading it, finding the snapshot that an address means, and rows to be shown."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import click

from spotckpt.address import NEWEST, Address
from spotckpt.errors import AddressError, Corrupt, NoSuchSnapshot, NotFound, SnapshotError
from spotckpt.snapshot.catalog import FIRST_ATTEMPT, Catalog, read_catalog, run_missing
from spotckpt.snapshot.choose import choose
from spotckpt.snapshot.fetch import evaluated_of, read_manifests
from spotckpt.snapshot.keys import RUN_KEY, SnapshotId, manifest_key
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.open import WithAncestors, open_run_store
from spotckpt.snapshot.pins import read_pins
from spotckpt.snapshot.records import RunRecord
from spotckpt.store.base import Store

LIVE_WITHIN_S = 60.0
"""A heartbeat younger than this, by this machine's clock, is shown as live; takeovers never ask it."""


@dataclass(frozen=True)
class Run:
    """A run that was read: its store, its records, and its snapshots' ids in order."""

    store: WithAncestors
    catalog: Catalog

    @property
    def ids(self) -> list[SnapshotId]:
        """Every snapshot, oldest first; those that ought to be there and are not, too."""
        return sorted(self.catalog.snapshots | self.catalog.missing)

    @property
    def run_id(self) -> str | None:
        """The run's id, which every manifest repeats; None where `run.json` cannot be read."""
        return self.catalog.run.run_id if self.catalog.run else None

    def problems(self) -> list[SnapshotError]:
        """Records that cannot be read, and snapshots that are not where a heartbeat says that they are."""
        lost = [Corrupt(f"{manifest_key(one)} is missing, though it was committed") for one in self.catalog.missing]
        found = [*self.catalog.problems.values(), *lost]
        return found if self.catalog.run or RUN_KEY in self.catalog.problems else [run_missing(self.store.uri), *found]


@contextmanager
def open_run(uri: str, *, timeout_s: float, everything: bool = False) -> Iterator[Run]:
    """Reads the records of the run at that URI, without a selector; its store is closed at the end.

    Args:
        uri: the run.
        timeout_s: of one operation on the store.
        everything: read all records, to show them; else those that tell where a restart would go on.

    Raises:
        NotFound: there is no run.
    """
    with closing(open_run_store(uri, call_timeout_s=timeout_s)) as store:
        catalog = read_catalog(store, everything=everything)
        if catalog.run is None and not catalog.problems and not catalog.highest and not catalog.snapshots:
            raise NotFound("read", f"{uri}/run.json", "there is no run here", hint="check the address")
        yield Run(store, catalog)


def address_of_run(text: str) -> str:
    """The URI of a whole run.

    Raises:
        AddressError: the address names one snapshot.
    """
    if names_snapshot(text):
        raise AddressError(f"{text} names one snapshot", hint="give the run's address, or use spotckpt show")
    return Address.parse(text).uri


def names_snapshot(text: str) -> bool:
    """Whether the address has a selector, be it `@newest`."""
    return Address.parse(text).selector != NEWEST or text.endswith("@newest")


def find_snapshot(run: Run, address: Address) -> SnapshotId:
    """The snapshot that an address means: without a selector, the one that a restart would try first.

    Raises:
        NoSuchSnapshot: there is none.
    """

    def say(text: str) -> None:
        click.echo(f"spotckpt: {text}", err=True)

    evaluated = evaluated_of(run.store, run_id=run.run_id, say=say)
    choice = choose(run.catalog, run.catalog.highest + 1, address.selector, evaluated=evaluated, claiming=False)
    if not choice.candidates:
        raise NoSuchSnapshot(f"{address} has no snapshot: {choice.why}", hint=f"see spotckpt ls {address.uri}")
    return choice.candidates[0]


@dataclass(frozen=True)
class AttemptRow:
    """An attempt as `ls` shows it; times are seconds since the epoch by the writers' clocks."""

    attempt: int
    state: str
    started: float | None
    heartbeat: float | None
    host: str
    instance: str
    selector: str
    continues: str | None
    snapshots: int
    last_committed: str | None


@dataclass(frozen=True)
class SnapshotRow:
    """A snapshot as `ls` shows it; `problem` is set, and nothing below `step`, if its manifest is unreadable."""

    snapshot: str
    attempt: int
    sequence: int
    step: int
    epoch: int | None = None
    reason: str = ""
    finished: bool = False
    created: float | None = None
    committed: float | None = None
    data_bytes: int = 0
    uploaded_bytes: int = 0
    parent: str | None = None
    latest: Mapping[str, float] = field(default_factory=dict)
    evaluated: Mapping[str, float] = field(default_factory=dict)
    pins: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Overview:
    """A run as `ls` shows it. `problems` are the errors behind the rows' problems, and of records."""

    uri: str
    run: RunRecord | None
    attempts: list[AttemptRow]
    snapshots: list[SnapshotRow]
    not_shown: int
    problems: list[SnapshotError]


def read_overview(uri: str, *, last: int, timeout_s: float) -> Overview:
    """Reads the run, and the manifests of its `last` newest snapshots."""
    with open_run(uri, timeout_s=timeout_s, everything=True) as run:
        shown = run.ids[-last:]
        present = [one for one in shown if one in run.catalog.snapshots]
        found = read_manifests(run.store, present, run_id=run.run_id)
        pins, bad_pins = _pins(run.store)
    rows = [_snapshot_row(one, found.get(one), tuple(name for name in pins if pins[name] == one)) for one in shown]
    problems = [*run.problems(), *(one for one in found.values() if isinstance(one, SnapshotError)), *bad_pins]
    attempts = [_attempt_row(run.catalog, number, time.time()) for number in range(1, run.catalog.highest + 1)]
    return Overview(uri, run.catalog.run, attempts, rows, len(run.ids) - len(shown), problems)


def _attempt_row(catalog: Catalog, number: int, now: float) -> AttemptRow:
    claim, base, beat = catalog.claims.get(number), catalog.bases.get(number), catalog.heartbeats.get(number)
    seen = beat.time if beat else claim.created if claim else None
    forked = catalog.run is not None and catalog.run.forked_from
    live = seen is not None and now - seen < LIVE_WITHIN_S and number == catalog.highest
    return AttemptRow(
        attempt=number,
        state="released" if beat and beat.released else "live" if live else "stale",
        started=claim.created if claim else None,
        heartbeat=beat.time if beat else None,
        host=claim.holder.host if claim else "",
        instance=claim.holder.instance if claim else "",
        selector=claim.selector if claim else "",
        continues=(base.snapshot or ("fork" if forked and number == FIRST_ATTEMPT else "start")) if base else None,
        snapshots=sum(one.attempt == number for one in catalog.snapshots),
        last_committed=beat.last_committed if beat else None,
    )


def descent(run: RunRecord) -> list[str]:
    """Of a fork, a line for each run that it descends from, nearest first."""
    values = ", ".join(f"{name}={json.dumps(value)}" for name, value in run.overrides.items())
    lines = [f"forked from {one.uri}@{one.snapshot}" for one in run.forked_from]
    return [lines[0] + (f", with {values}" if values else ""), *lines[1:]]


def _pins(store: Store) -> tuple[dict[str, SnapshotId], list[SnapshotError]]:
    try:
        return {name: pin.id for name, pin in sorted(read_pins(store).items())}, []
    except SnapshotError as error:
        return {}, [error]


def _snapshot_row(one: SnapshotId, manifest: Manifest | SnapshotError | None, pins: tuple[str, ...]) -> SnapshotRow:
    if not isinstance(manifest, Manifest):
        problem = manifest.message if manifest else f"{manifest_key(one)} is missing"
        return SnapshotRow(str(one), one.attempt, one.sequence, one.step, problem=problem)
    return SnapshotRow(
        snapshot=str(one),
        attempt=one.attempt,
        sequence=one.sequence,
        step=one.step,
        epoch=manifest.epoch,
        reason=manifest.reason,
        finished=manifest.finished,
        created=manifest.created,
        committed=manifest.committed,
        data_bytes=manifest.data_bytes,
        uploaded_bytes=manifest.uploaded_bytes,
        parent=str(manifest.parent) if manifest.parent else None,
        latest=manifest.latest,
        evaluated=manifest.evaluated,
        pins=pins,
    )
