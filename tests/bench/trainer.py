"""The trainer: a child process that trains with spotckpt's public interface, and what it is compared with there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch

import spotckpt
from tests.bench import peers
from tests.bench.measure import memory_bytes
from tests.bench.training import Training, like, synchronize


class Left(Exception):
    """Leaves a run without finishing it."""


class Trainer:
    """Holds one training, and a run of it when one is open."""

    _training: Training

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._arguments: dict[str, Any] = {}
        self._copies: list[torch.Tensor] = []
        self._context: Any = None
        self._run: Any = None
        self._async = peers.AsyncSave()

    def close(self) -> None:
        """Leaves the run."""
        if self._context is not None:
            with contextlib.suppress(Left):
                self._context.__exit__(Left, Left(), None)
            self._context = None

    # What is asked before and between

    def begin(self, environment: Mapping[str, str], **training: Any) -> None:
        """A new case: another address on S3, all threads, and a training of its own.

        Args:
            environment: changes to this process's.
            training: arguments of `Training`.
        """
        self.use(environment)
        torch.set_num_threads(self._threads)
        self._copies.clear()
        self._arguments = training
        self.renew(stepped=True)

    def use(self, environment: Mapping[str, str]) -> None:
        """Changes this process's environment."""
        os.environ.update(environment)
        peers.forget_connections()

    def threads(self, number: int) -> None:
        """How many threads compute."""
        torch.set_num_threads(number)

    def size_bytes(self) -> int:
        """Of the state."""
        return self._training.size_bytes

    def anonymous_bytes(self) -> int:
        """Memory of this process alone, without what malloc keeps for later."""
        ctypes.CDLL(None).malloc_trim(0)
        return memory_bytes(os.getpid(), "RssAnon")

    def compute_for(self, seconds: float) -> int:
        """See `Training`; the rows of the batch."""
        self._training.compute_for(seconds)
        return len(self._training.batch)

    def renew(self, *, stepped: bool) -> None:
        """A new training, as a restarted process has it: no optimizer state yet, unless `stepped`."""
        self.close()
        self._training = Training(**self._arguments)
        if stepped:
            self._training.step()

    # What is measured; all return wall seconds

    def copy(self) -> float:
        """A plain copy of all tensors into warm memory, pinned if they are on a GPU."""
        if not self._copies:
            self._copies = like(self._training.tensors)
        started = time.perf_counter()
        for target, source in zip(self._copies, self._training.tensors, strict=True):
            target.copy_(source, non_blocking=True)
        synchronize(self._training.batch.device)
        return time.perf_counter() - started

    def open(self, uri: str, **options: Any) -> float:
        """Opens a run, leaving one that was open, and tracks the training, which restores it if there is a snapshot."""
        self.close()
        started = time.perf_counter()
        self._context = spotckpt.open_run(uri, **options)
        self._run = self._context.__enter__()
        self._run.track(model=self._training.model, optimizer=self._training.optimizer)
        synchronize(self._training.batch.device)
        return time.perf_counter() - started

    def resumed_from(self) -> str | None:
        """The snapshot that the open run goes on from."""
        found: str | None = self._run.resumed_from
        return found

    def step(self) -> float:
        """One step, so that the next snapshot differs from the last in every tensor."""
        return self.steps(1, boundaries=False)

    def snapshot(self) -> tuple[float, float]:
        """A snapshot asked for by hand: how long the boundary took, and when it was over by `perf_counter`."""
        self._run.save()
        started = time.perf_counter()
        self._run.boundary()
        ended = time.perf_counter()
        return ended - started, ended

    def steps(self, number: int, *, boundaries: bool) -> float:
        """That many steps, with or without one of spotckpt's boundaries before each."""
        started = time.perf_counter()
        for _ in range(number):
            if boundaries:
                self._run.boundary()
            self._training.step()
        synchronize(self._training.batch.device)
        return time.perf_counter() - started

    def step_beside_copy(self) -> float:
        """One step, with a thread that copies all tensors beside forward and backward: the least that overlap costs."""
        started = time.perf_counter()
        pairs = zip(self._copies, self._training.tensors, strict=True)
        thread = threading.Thread(target=lambda: [_move(target, source) for target, source in pairs])
        thread.start()
        self._training.compute()
        thread.join()
        self._training.optimizer.step()
        return time.perf_counter() - started

    def train_for(self, seconds: float) -> int:
        """Steps with boundaries for so long; how many."""
        end, number = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            self.steps(1, boundaries=True)
            number += 1
        return number

    def peer(self, name: str, uri: str) -> float:
        """One of the functions of `peers`."""
        started = time.perf_counter()
        getattr(peers, name)(self._training, uri)
        return time.perf_counter() - started

    def async_steps(self, number: int, uri: str) -> float:
        """Steps with `dcp.async_save` after the first; the rest of its upload is waited for, not counted."""
        started = time.perf_counter()
        self._training.step()
        self._async.start(self._training, uri)
        for _ in range(number - 1):
            self._training.compute()
            self._async.before_optimizer()
            self._training.optimizer.step()
        synchronize(self._training.batch.device)
        wall = time.perf_counter() - started
        self._async.wait()
        return wall


def _move(target: torch.Tensor, source: torch.Tensor) -> None:
    ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)
