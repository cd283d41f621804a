"""A training whose state is large and whose memory is not: prints a digest of its weights, and what it resumed from."""

from __future__ import annotations

import sys

import torch
from blake3 import blake3

import spotckpt

LAYER_BYTES = 32 << 20


def digest(model: torch.nn.ParameterList) -> str:
    """Of all weights."""
    hasher = blake3()
    for weight in model:
        hasher.update(memoryview(weight.detach().numpy()).cast("B"))
    return hasher.hexdigest()


def train(uri: str, mebibytes: int, steps: int) -> None:
    """Three snapshots on the way, and the final one."""
    torch.manual_seed(0)
    model = torch.nn.ParameterList(
        torch.nn.Parameter(torch.empty(LAYER_BYTES // 4), requires_grad=False)
        for _ in range((mebibytes << 20) // LAYER_BYTES)
    )
    with spotckpt.open_run(uri, every="1 steps") as run:
        run.track(model=model)
        if run.resumed_from is None:
            for weight in model:
                weight.data.normal_()
        else:
            print("resumed", digest(model), flush=True)
        for step in run.steps(steps):
            model[step % len(model)].data.mul_(-1.0)
        print("ended", digest(model), flush=True)


train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
