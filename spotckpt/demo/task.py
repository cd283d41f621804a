"""What the demo's two training scripts share: data, model, one step, and writing down how it ended.

`spotckpt.demo.plain` is a training as everybody writes it, `spotckpt.demo.spot` is the same loop with spotckpt.
"""

from __future__ import annotations

import argparse
import logging
import random
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EPOCHS = 4
BATCH_SIZE = 32
NUM_TRAIN = 40 * BATCH_SIZE
NUM_VALID = 256

log = logging.getLogger("train")


class Shapes(Dataset[tuple[Tensor, Tensor]]):
    """Noisy 16x16 images of ten kinds of wave, made on the spot, augmented at random each time they are read."""

    def __init__(self, size: int, *, seed: int, augment: bool) -> None:
        rng = np.random.default_rng(seed)
        self.labels = torch.from_numpy(rng.integers(0, 10, size))
        x, y = np.meshgrid(np.linspace(0, 6, 16), np.linspace(0, 6, 16))
        angle = self.labels.numpy()[:, None, None] * np.pi / 10
        waves = np.sin(np.cos(angle) * x + np.sin(angle) * y + rng.uniform(0, 6, (size, 1, 1)))
        self.images = torch.from_numpy((waves + rng.normal(0, 0.8, waves.shape))[:, None].astype(np.float32))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.augment:  # all three generators on purpose: a resume has to bring each of them back
            image = torch.roll(image, random.randrange(-2, 3), dims=2)
            image = image * float(np.random.uniform(0.8, 1.2))
            image = image + 0.1 * torch.randn(image.shape)
        return image, self.labels[index]


class Net(nn.Module):
    """A small convolutional net; its wide layer makes the state big enough for a multipart upload."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(512, 2048), nn.ReLU(), nn.Dropout(0.3), nn.Linear(2048, 896), nn.ReLU(), nn.Linear(896, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits: float[batch, 10] of images float[batch, 1, 16, 16]."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


def build(seed: int) -> tuple[Net, torch.optim.SGD, ReduceLROnPlateau, DataLoader[Any], DataLoader[Any]]:
    """Model, optimizer, scheduler, training and validation data, all from the seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.3)
    train = DataLoader(Shapes(NUM_TRAIN, seed=seed, augment=True), batch_size=BATCH_SIZE, shuffle=True)
    valid = DataLoader(Shapes(NUM_VALID, seed=seed + 1, augment=False), batch_size=BATCH_SIZE)
    return model, optimizer, scheduler, train, valid


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """One optimizer step; returns the loss."""
    model.train()
    optimizer.zero_grad()
    loss = nnf.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Mean loss over the validation data."""
    model.eval()
    return fmean(nnf.cross_entropy(model(images), labels).item() for images, labels in loader)


def report(losses: Mapping[str, Sequence[float]], optimizer: torch.optim.Optimizer) -> None:
    """One line per epoch."""
    train, valid, lr = losses["train"], losses["valid"], optimizer.param_groups[0]["lr"]
    done = f"epoch {len(valid)} of {EPOCHS} done, step {len(train)}"
    log.info("%s: train loss %.4f, valid loss %.4f, lr %g", done, train[-1], valid[-1], lr)


def save_end_state(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: ReduceLROnPlateau,
    losses: Mapping[str, Sequence[float]],
) -> None:
    """Writes every tensor, number, RNG state and loss to an `.npz` file, for the comparison."""
    python_version, python_words, python_gauss = random.getstate()
    _, numpy_words, *numpy_rest = np.random.get_state()
    arrays = {f"model/{name}": tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays |= flatten("optimizer", optimizer.state_dict())
    arrays |= flatten("scheduler", scheduler.state_dict())
    arrays |= {
        "rng/torch": torch.get_rng_state().numpy(),
        "rng/python": np.array([python_version, *python_words], np.int64),
        "rng/python-gauss": np.array(np.nan if python_gauss is None else python_gauss, np.float64),
        "rng/numpy": numpy_words,
        "rng/numpy-rest": np.array(numpy_rest, np.float64),
    }
    arrays |= {f"curve/{name}-loss": np.array(list(values), np.float64) for name, values in losses.items()}
    with out.open("wb") as file:
        np.savez(file, **arrays)


def flatten(path: str, value: object) -> dict[str, Any]:
    """Every tensor, number, flag and text in nested dicts and lists, by its path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, part in items for name, leaf in flatten(f"{path}/{key}", part).items()}
    return {path: value.numpy() if isinstance(value, Tensor) else np.array(str(value) if value is None else value)}


def parse_arguments() -> argparse.Namespace:
    """The command line that both scripts have, and what makes a CPU training repeatable."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="where to write the end state")
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)
    return parser.parse_args()
