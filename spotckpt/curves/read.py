"""Reads what is drawn of a run: its records, a few manifests, and for each line the metrics, never a tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from spotckpt.curves.chart import Subject, Track
from spotckpt.curves.course import Line, find_lines, untold_ends
from spotckpt.errors import NoSuchSnapshot, SnapshotError
from spotckpt.snapshot.catalog import Catalog
from spotckpt.snapshot.fetch import read_manifest, read_manifests
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.keys import SnapshotId
from spotckpt.snapshot.manifest import Manifest
from spotckpt.store.base import Store

Say = Callable[[str], None]

MOST_LEFT = 8
"""Lines that were left, of each run."""


def read_subject(
    store: Store, catalog: Catalog, uri: str, *, tip: SnapshotId | None = None, left: bool = True, say: Say
) -> Subject:
    """The run's main line, and with it those that were left.

    Args:
        store: of the run.
        catalog: with every record read.
        uri: its address, for people.
        tip: where the main line ends; None for the newest.
        left: whether lines that were left are read too.
        say: told of what cannot be read.

    Raises:
        NoSuchSnapshot: nothing is committed.
        SnapshotError, StoreError: the main line's metrics cannot be read.
    """
    run = catalog.run
    ends = read_manifests(store, untold_ends(catalog), run_id=run.run_id if run else None)
    finished = {snapshot for snapshot, end in ends.items() if isinstance(end, Manifest) and end.finished}
    lines = find_lines(catalog, now=time.time(), tip=tip, finished=finished)
    if not lines:
        raise NoSuchSnapshot(f"{uri} has no snapshot yet", hint="curves are drawn from what is committed")
    main, *others = lines
    tracks = [_read(store, catalog, main)]
    if left:
        tracks += _readable(store, catalog, others[:MOST_LEFT], say)
        if len(others) > MOST_LEFT:
            say(f"of {len(others)} lines that were left only the newest {MOST_LEFT} are drawn")
    return Subject(uri, tuple(tracks), run.run_id if run else "", run.forked_from if run else ())


def _read(store: Store, catalog: Catalog, line: Line) -> Track:
    run_id = catalog.run.run_id if catalog.run else None
    return Track(line, read_history(store, read_manifest(store, line.tip, run_id=run_id)))


def _readable(store: Store, catalog: Catalog, lines: Sequence[Line], say: Say) -> list[Track]:
    found = []
    for line in lines:
        try:
            found.append(_read(store, catalog, line))
        except SnapshotError as error:
            say(f"a line that was left is not drawn: {error}")
    return found
