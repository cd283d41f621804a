"""Gradients that a snapshot must not lose.

At a boundary a gradient may be half of an accumulation window. It is left out of the snapshot only when it is known to be
consumed: the optimizer has stepped on exactly this value, and the training loop is known to throw gradients away after a
step instead of going on in the same tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


class GradWatch:
    """Counts optimizer steps and knows which parameters hold gradients that no step has used."""

    def __init__(self) -> None:
        raise NotImplementedError

    @property
    def steps_taken(self) -> int:
        """Steps of all watched optimizers since they are watched; a step skipped by a GradScaler does not count."""
        raise NotImplementedError

    def watch(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Starts to watch; the same name again replaces the earlier one."""
        raise NotImplementedError

    def unconsumed(self) -> dict[str, dict[int, torch.Tensor]]:
        """Optimizer name → index of the parameter (as in the optimizer's `state_dict`) → its live gradient.

        Empty when every watched optimizer that has gradients has stepped on them. The tensors are not copied.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Removes the hooks."""
        raise NotImplementedError


def restore_gradients(name: str, optimizer: torch.optim.Optimizer, gradients: Mapping[int, torch.Tensor]) -> None:
    """Gives each parameter its gradient back, on the parameter's device.

    Args:
        name: of the optimizer, for messages.
        optimizer: its parameters get the gradients, in the order of its `state_dict`.
        gradients: as `GradWatch.unconsumed` returned them under this name, decoded.

    Raises:
        MismatchError: an index or a shape does not fit the optimizer's parameters.
    """
    raise NotImplementedError
