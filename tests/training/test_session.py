"""A session inside one process: what it leaves behind, and what forked workers make of it."""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import spotckpt
from spotckpt.errors import AgentError, MismatchError
from tests.support.servers import wait_until
from tests.training.machine import Bucket

pytestmark = pytest.mark.usefixtures("on_shared")


def train(uri: str, num_epochs: int, *, num_workers: int = 0) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(torch.randn(8, 2), batch_size=2, shuffle=True, num_workers=num_workers)
    with spotckpt.open_run(uri, every="1 steps") as run:
        run.track(model=model, optimizer=optimizer)
        for _epoch in run.epochs(num_epochs):
            for x in run.batches(loader):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
    return model.weight.detach()


def open_things() -> tuple[int, set[str]]:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), {thread.name for thread in threading.enumerate()}


def own_threads() -> set[str]:
    return {name for name in open_things()[1] if name.startswith("spotckpt-")}


def test_nothing_is_left_behind_by_a_run(bucket: Bucket) -> None:
    train(f"{bucket.uri}-first", 1)
    wait_until(lambda: not own_threads(), what="the end of the thread that warms slots up")
    before = open_things()
    for epochs in (1, 2, 3):
        train(bucket.uri, epochs)
    wait_until(lambda: open_things() == before, what="that nothing is left")
    assert bucket.attempts() == [1, 2, 3]
    hooks = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)._optimizer_step_post_hooks
    assert not hooks


def test_a_failed_start_gives_the_attempt_back(bucket: Bucket) -> None:
    with pytest.raises(LookupError), spotckpt.open_run(bucket.uri, every="1 steps") as run:
        run.track(model=torch.nn.Linear(2, 1))
        run.boundary()
        raise LookupError
    with pytest.raises(MismatchError, match="holds model"), spotckpt.open_run(bucket.uri) as run:
        next(iter(run.epochs(2)))
    assert bucket.attempts() == [1, 2] and bucket.released(2)


def test_a_run_is_opened_once_per_process(bucket: Bucket) -> None:
    with spotckpt.open_run(bucket.uri), pytest.raises(AgentError, match="open in this process already"):
        train(bucket.uri, 1)


def test_loader_workers_are_forked_and_die_as_usual_while_snapshots_are_taken(bucket: Bucket) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking with threads
        warnings.filterwarnings("ignore", "This DataLoader will create")  # on a machine with one core
        with_workers = train(bucket.uri, 2, num_workers=2)
    assert torch.equal(with_workers, train(f"{bucket.uri}-plain", 2, num_workers=0))
    assert bucket.manifests()[-1]["finished"]


@pytest.mark.fault(10)
def test_a_forked_child_neither_ends_nor_moves_its_parent_s_run(bucket: Bucket) -> None:
    with spotckpt.open_run(bucket.uri, every="1 steps") as run:
        run.boundary()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                run._left()
                run._close()
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        run.boundary()
        assert not bucket.released(1)
    assert bucket.manifests()[-1]["step"] == 2
    assert bucket.manifests()[-1]["finished"]


def test_after_a_loop_weights_may_be_changed_by_anything(bucket: Bucket, capfd: pytest.CaptureFixture[str]) -> None:
    """An evaluation that swaps weights through `.data` follows a loop; the last copy is over by then."""
    model = torch.nn.Linear(1024, 1024)
    optimizer = torch.optim.Adam(model.parameters())
    with spotckpt.open_run(bucket.uri, every="1 steps", overlap=True) as run:
        run.track(optimizer=optimizer, model=model)  # the weights are copied last
        for _ in run.epochs(6):
            for _ in run.batches([1, 2]):
                optimizer.zero_grad()
                model(torch.ones(2, 1024)).sum().backward()
                optimizer.step()
            kept = model.weight.detach().clone()
            model.weight.data.zero_()
            time.sleep(0.05)  # what an evaluation takes
            model.weight.data.copy_(kept)
    assert "is dropped" not in capfd.readouterr().err
    assert bucket.manifests()[-1]["finished"]
