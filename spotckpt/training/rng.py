"""Random number generators: the global ones of this process, and generator objects.

A state is made of primitives and numpy arrays, never of pickles, so that it can travel in a snapshot. Each state that
is captured is a copy: it does not change when the generator goes on.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

Generator: TypeAlias = "torch.Generator | np.random.Generator | np.random.RandomState | random.Random"

GENERATOR_TYPES = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def capture_rng() -> dict[str, Any]:
    """The state of every global generator of this process.

    Keys: `python`; `numpy`, when numpy's global generator was ever imported; `torch` (uint8[5056] as a numpy array);
    `cuda`, a list with one uint8 array per device, when CUDA was initialised; `mps`, where there is one.
    """
    state: dict[str, Any] = {"python": capture_generator(random._inst)}
    if "numpy.random" in sys.modules:
        state["numpy"] = np.random.get_state(legacy=False)
    state["torch"] = torch.get_rng_state().numpy()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [device.numpy() for device in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state().numpy()
    return state


def restore_rng(state: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Puts back what `capture_rng` returned; what this machine lacks is told to `say` and left out."""
    restore_generator(random._inst, state["python"])
    if "numpy" in state:
        np.random.set_state(_plain_numpy(state["numpy"]))
    torch.set_rng_state(_byte_tensor(state["torch"]))
    _restore_cuda(state.get("cuda", []), say)
    if "mps" in state:
        if torch.backends.mps.is_available():
            torch.mps.set_rng_state(_byte_tensor(state["mps"]))
        else:
            say("the snapshot holds the RNG state of an MPS device and there is none here: random draws will differ")


def _restore_cuda(states: list[Any], say: Callable[[str], None]) -> None:
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if states and len(states) != num_devices:
        say(
            f"the snapshot holds RNG states of {len(states)} CUDA device(s), this machine has {num_devices}: "
            "random draws on the others will differ"
        )
    for index, device in enumerate(states[:num_devices]):
        torch.cuda.set_rng_state(_byte_tensor(device), index)


def capture_generator(generator: Generator) -> dict[str, Any]:
    """The state of one generator object, with its `kind`."""
    if isinstance(generator, torch.Generator):
        return {"kind": "torch", "device": str(generator.device), "state": generator.get_state().numpy()}
    if isinstance(generator, np.random.Generator):
        return {"kind": "numpy", "state": generator.bit_generator.state}
    if isinstance(generator, np.random.RandomState):
        return {"kind": "numpy-legacy", "state": generator.get_state(legacy=False)}
    version, words, gauss = generator.getstate()
    return {"kind": "python", "version": version, "words": np.array(words, np.uint64), "gauss": gauss}


def restore_generator(generator: Generator, state: Mapping[str, Any]) -> None:
    """Puts a state of the same kind back, in place.

    Raises:
        ValueError: the state is of another kind of generator.
    """
    expected = kind_of_generator(generator)
    if state.get("kind") != expected:
        raise ValueError(f"a state of a {state.get('kind')} generator does not fit a {expected} one")
    if isinstance(generator, torch.Generator):
        generator.set_state(_byte_tensor(state["state"]))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _plain_numpy(state["state"])
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_plain_numpy(state["state"]))
    else:
        words = tuple(int(word) for word in state["words"])
        generator.setstate((state["version"], words, state["gauss"]))


def kind_of_generator(generator: Generator) -> str:
    """`torch`, `numpy`, `numpy-legacy` or `python`."""
    if isinstance(generator, torch.Generator):
        return "torch"
    if isinstance(generator, np.random.Generator):
        return "numpy"
    return "numpy-legacy" if isinstance(generator, np.random.RandomState) else "python"


def _plain_numpy(state: Any) -> Any:
    """numpy checks `type(value) is dict` in places: ordered or read-only mappings become dictionaries."""
    if isinstance(state, Mapping):
        return {key: _plain_numpy(value) for key, value in state.items()}
    return state


def _byte_tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.uint8))
