"""Gradients that a snapshot must not lose.

At a boundary a gradient may be half of an accumulation window. It is left out of the snapshot only when it is known to
be consumed: the optimizer has stepped on exactly this value, and the training is known to throw gradients away after a
step (`zero_grad(set_to_none=True)`) instead of going on in the same tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from spotckpt.errors import MismatchError
from spotckpt.training.pinned import is_capturing

_MARK = "_spotckpt_stepped_at"


class GradWatch:
    """Counts optimizer steps and knows which parameters hold gradients that no step has used.

    Attributes:
        steps_taken: of all watched optimizers since they are watched; one skipped by a GradScaler does not count.
    """

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}
        self.steps_taken = 0

    @property
    def graphed(self) -> bool:
        """Whether a step was captured into a CUDA graph, whose replays call no hook."""
        return any(one.graphed for one in self._watched.values())

    def watch(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Starts to watch; the same name again replaces the earlier one."""
        self._retire(name)
        self._watched[name] = _Watched(optimizer, self._stepped)

    def unconsumed(self) -> dict[str, dict[int, torch.Tensor]]:
        """Optimizer name → index of the parameter (as in the optimizer's `state_dict`) → its live gradient.

        Empty when every watched optimizer that has gradients has stepped on them. The tensors are not copied.
        """
        found = {name: one.unconsumed() for name, one in self._watched.items()}
        return {name: gradients for name, gradients in found.items() if gradients}

    def close(self) -> None:
        """Removes the hooks."""
        for name in list(self._watched):
            self._retire(name)

    def _retire(self, name: str) -> None:
        if name in self._watched:
            self._watched.pop(name).hook.remove()

    def _stepped(self) -> None:
        self.steps_taken += 1


class _Watched:
    """One optimizer.

    A gradient that a step has used carries the version that it had then, as an attribute: a later gradient is another
    tensor and lacks it, or the same one at a higher version. (An id or address would be used again.)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, stepped: Callable[[], None]) -> None:
        self.optimizer = optimizer
        self._stepped = stepped
        self.graphed = False
        self._seen: set[int] = set()
        self._renewed: set[int] = set()
        self.hook = optimizer.register_step_post_hook(lambda stepped, args, kwargs: self._after_step())

    def _after_step(self) -> None:
        self._stepped()
        self.graphed = self.graphed or is_capturing()
        for index, parameter in enumerate(parameters_of(self.optimizer)):
            gradient = parameter.grad
            if gradient is None:
                continue
            if hasattr(gradient, _MARK):
                # It outlived the step before: zeroed in place or never. What it holds now is part of what comes.
                self._renewed.discard(index)
            elif index in self._seen:
                self._renewed.add(index)
            self._seen.add(index)
            setattr(gradient, _MARK, gradient._version)

    def unconsumed(self) -> dict[int, torch.Tensor]:
        return {
            index: parameter.grad
            for index, parameter in enumerate(parameters_of(self.optimizer))
            if parameter.grad is not None and not self._is_consumed(index, parameter.grad)
        }

    def _is_consumed(self, index: int, gradient: torch.Tensor) -> bool:
        return index in self._renewed and getattr(gradient, _MARK, None) == gradient._version


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The parameters in the order of the indices in the optimizer's `state_dict`."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def restore_gradients(name: str, optimizer: torch.optim.Optimizer, gradients: Mapping[int, Any]) -> None:
    """Gives each parameter its gradient back, on the parameter's device.

    Args:
        name: of the optimizer, for messages.
        optimizer: its parameters get the gradients, in the order of its `state_dict`.
        gradients: as `GradWatch.unconsumed` returned them under this name, decoded.

    Raises:
        MismatchError: an index or a shape does not fit the optimizer's parameters; nothing was changed then.
    """
    parameters = parameters_of(optimizer)
    for index, gradient in gradients.items():
        if not 0 <= index < len(parameters) or parameters[index].shape != gradient.shape:
            raise MismatchError(
                f"{name}: the saved gradient of parameter {index} has the shape {tuple(gradient.shape)}, the optimizer "
                + (f"has {tuple(parameters[index].shape)}" if index < len(parameters) else f"has {len(parameters)}"),
                hint="build the optimizer as before, or track it with optional= or drop=",
            )
    for index, gradient in gradients.items():
        parameters[index].grad = gradient.to(parameters[index].device)
