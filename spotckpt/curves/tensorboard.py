"""The metric history as event files, which TensorBoard itself reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from spotckpt.curves.chart import Track
from spotckpt.curves.scales import has_own_steps, run_steps, scales_of
from spotckpt.errors import UsageError
from spotckpt.snapshot.metrics import Series

if TYPE_CHECKING:
    from numpy.typing import NDArray


def event_file(folder: Path, run_id: str) -> Path:
    """Where a run's events lie: exporting it again replaces them."""
    return folder / f"events.out.tfevents.0000000000.spotckpt.{run_id}"


def write_events(track: Track, series: Mapping[tuple[str, str], Series], file: BinaryIO) -> list[str]:
    """One record for each number, as float32, with its step and the time of that step.

    Args:
        track: the line that the metrics belong to.
        series: the metrics, by set and name.
        file: an event file.

    Returns:
        Metrics that were left out: they are no numbers.

    Raises:
        UsageError: tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise UsageError("event files need tensorboard", hint='pip install "spotckpt[curves]"') from error
    writer, began = RecordWriter(file), _began(track)
    writer.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
    for (set_, name), one in series.items():
        if one.is_scalar:
            times, (steps, _, values) = _times(track, one), one.columns()
            for at, step, value in zip(times.tolist(), steps.tolist(), values.tolist(), strict=True):
                summary = Summary(value=[Summary.Value(tag=f"{set_}/{name}", simple_value=value)])
                writer.write(Event(wall_time=at, step=step, summary=summary).SerializeToString())
    return [f"{set_}/{name}" for (set_, name), one in series.items() if not one.is_scalar]


def _began(track: Track) -> float:
    return next((one.began for one in track.line.stretches if one.began is not None), 0.0)


def _times(track: Track, series: Series) -> NDArray[np.float64]:
    """float64[n]: seconds since the epoch; when the run began, for what nobody knows better."""
    steps, began = series.columns()[0], _began(track)
    scales = scales_of(track.line, track.history, origin=0.0)
    of_run = run_steps(series, scales) if has_own_steps(series) else steps
    if of_run is None:
        return np.full(len(steps), began)
    times = scales.place("time", of_run)
    return np.where(np.isfinite(times), times, began)
