"""The training that is measured: a stack of linear layers with AdamW's state, of a given size."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

LAYERS = 67  # with AdamW's two moments about 200 tensors
STATE_PER_PARAMETER = 3


class Training:
    """Model, optimizer and a batch.

    Args:
        size_bytes: of parameters and moments together, about.
        layers: each one matrix.
        frozen: the share of the layers that is not trained.
        device: where everything is.
    """

    def __init__(self, size_bytes: int, *, layers: int = LAYERS, frozen: float = 0.0, device: str = "cpu") -> None:
        per_layer = STATE_PER_PARAMETER if frozen == 0 else 1
        width = max(2, math.isqrt(size_bytes // (4 * per_layer * layers)))
        self.model = torch.nn.Sequential(*(_layer(width, device) for _ in range(layers)))
        for layer in self.model[: int(layers * frozen)]:
            layer.requires_grad_(False)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.batch = torch.randn(16, width, device=device)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that a snapshot holds."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [parameter.data for parameter in self.model.parameters()] + moments

    @property
    def size_bytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def compute(self) -> None:
        """Forward and backward."""
        self.optimizer.zero_grad()
        self.model(self.batch).square().mean().backward()

    def step(self) -> None:
        """One whole step."""
        self.compute()
        self.optimizer.step()

    def compute_for(self, seconds: float) -> None:
        """Makes the batch so large that forward and backward take that long."""
        while (took := self._timed()) < seconds:
            rows = math.ceil(len(self.batch) * min(4.0, 1.1 * seconds / took)) + 1
            self.batch = torch.randn(rows, self.batch.shape[1], device=self.batch.device)

    def _timed(self) -> float:
        self.compute()
        walls = []
        for _ in range(3):
            started = time.perf_counter()
            self.compute()
            synchronize(self.batch.device)
            walls.append(time.perf_counter() - started)
        return sorted(walls)[1]


def synchronize(device: torch.device) -> None:
    """Waits for what was started on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def like(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Host memory for a copy of them, touched; pinned for tensors of a GPU."""
    found = [torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda) for tensor in tensors]
    for tensor in found:
        tensor.zero_()
    return found


def _layer(width: int, device: str) -> Any:
    layer = torch.nn.utils.skip_init(torch.nn.Linear, width, width, bias=False, device=device)
    torch.nn.init.eye_(layer.weight)
    return layer
