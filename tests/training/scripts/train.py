"""A small training that a test can make end in any way it likes."""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import spotckpt
from tests.training.native import wait_in_native_call

if TYPE_CHECKING:
    from spotckpt import Run

parser = argparse.ArgumentParser()
parser.add_argument("--uri")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--every", default="1 steps")
parser.add_argument("--upload-every", default="0s")
parser.add_argument("--keep-best")
parser.add_argument("--keep")
parser.add_argument("--stale-after", default="60s")
parser.add_argument("--reserve", default="10s")
parser.add_argument("--sigterm-grace", default="10s")
parser.add_argument("--metadata-endpoint", default="")
parser.add_argument("--init-from")
parser.add_argument("--overlap", action="store_true", default=None)
parser.add_argument("--width", type=int, default=8)
parser.add_argument("--frozen", type=int, default=0, help="so many weights that are not trained")
parser.add_argument("--at", type=int, default=-1, help="the step in whose body the act happens")
parser.add_argument("--act", default="")
parser.add_argument("--save-in", type=int, action="append", default=[], help="a step that asks for a snapshot")
parser.add_argument("--signal", type=int, help="what the act `signal` sends to itself")
parser.add_argument("--after", type=float, help="so many seconds later, while the training goes on")
parser.add_argument("--trace", type=Path, required=True)
parser.add_argument("--backwards", action="store_true", help="the wall clock goes the wrong way")
parser.add_argument("--rows", type=int, default=0, help="so many more points are logged at each step")
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--delay", type=float, default=0.0)
spotckpt.add_arguments(parser)
args = parser.parse_args()


if args.backwards:
    time.time = lambda: 1.7e9 - 100.0 * time.monotonic()


class Broken:
    """Tracked; its state cannot be had once it is told so."""

    broken = False
    bereaved = False
    value: object = 1

    def state_dict(self) -> dict[str, object]:
        if self.bereaved:
            self.bereaved = False
            bereave()
        if self.broken:
            raise ZeroDivisionError("the state is broken")
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.value = state["value"]


def note(text: str) -> None:
    """One line that the test can wait for."""
    with args.trace.open("a") as file:
        file.write(f"{text}\n")


def bereave() -> None:
    """The loader's worker is killed, and the main thread is told, before this returns."""
    [worker] = multiprocessing.active_children()
    worker.kill()
    os.waitid(os.P_PID, worker.pid or 0, os.WEXITED | os.WNOWAIT)
    time.sleep(0.05)
    note("bereaved")


def told_to_go() -> None:
    """The test has said `go`."""
    end = time.monotonic() + 120
    while time.monotonic() < end and not args.trace.with_suffix(".go").exists():
        time.sleep(0.01)


def act(run: Run, extra: Broken) -> None:  # noqa: C901, PLR0912
    """Whatever the test asked for."""
    match args.act:
        case "raise":
            raise ValueError("boom")
        case "exit":
            sys.exit(3)
        case "hold":
            note("holding")
            time.sleep(120)
        case "spin" | "unencodable_spin":
            extra.value = 1 if args.act == "spin" else (lambda: None)
            note("spinning")
            told_to_go()
        case "hear":
            while not run._saver.session.news.early:
                time.sleep(0.01)
            note("heard")
        case "finish":
            run.finish()
        case "os_exit":
            os._exit(9)
        case "segfault":
            ctypes.string_at(0)
        case "bereave":
            extra.bereaved = True
        case "native":
            note("in C")
            wait_in_native_call(told_to_go)
            note("back")
        case "signal":
            threading.Timer(args.after, os.kill, [os.getpid(), args.signal]).start()
        case "broken":
            extra.broken = True
        case "unencodable":
            extra.value = lambda: None
        case "vars":
            run.vars["tokenizer"] = {"fn": lambda: None}


@spotckpt.resumable(
    args.uri,
    every=args.every,
    upload_every=args.upload_every,
    keep=args.keep,
    keep_best=args.keep_best,
    stale_after=args.stale_after,
    reserve=args.reserve,
    sigterm_grace=args.sigterm_grace,
    metadata_endpoint=args.metadata_endpoint,
    init_from=args.init_from,
    overlap=args.overlap,
)
def train(run: Run, *, epochs: int, width: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.2), nn.Linear(width, 1))
    if args.frozen:
        model.base = nn.Parameter(torch.randn(args.frozen), requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4 / width, momentum=0.9)
    extra = Broken()
    run.track(model=model, optimizer=optimizer, extra=extra)
    note(f"begin {run.step} {run.resumed_from}")
    loader = torch.utils.data.DataLoader(
        torch.arange(40.0).reshape(10, 4) / 40, batch_size=2, shuffle=True, num_workers=args.workers
    )
    for epoch in run.epochs(epochs):
        for x in run.batches(loader):
            optimizer.zero_grad()
            loss = (model(x) - x.sum()).square().mean() + (model.base[0] if args.frozen else 0)
            loss.backward()
            optimizer.step()
            run.log("train", loss=loss.item())
            for number in range(args.rows):
                run.log("samples", step=args.rows * run.step + number, x=number / 7, last=float(run.step))
            if args.rows:
                run.log("samples", step=run.epoch, worst=[run.step, torch.tensor([loss.item()])])
            note(f"step {run.step}")
            time.sleep(args.delay)
            if run.step in args.save_in:
                run.save()
            if run.step == args.at:
                act(run, extra)
        run.log("valid", score=float(epoch % 2))
    total = sum(float(parameter.detach().double().sum()) for parameter in model.parameters())
    note(f"end {run.step} {total!r} {list(run.history['train']['loss'])!r}")


train.at(args.resume, takeover=args.takeover)(epochs=args.epochs, width=args.width)
