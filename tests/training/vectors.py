"""A second workload: regression on vectors. Run as a rank: `-m tests.training.vectors OUT words…`.

What training/ needs to know of it is here; nothing there was changed for it.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import draws
from pipeline.training.job import Job
from pipeline.training.loop import work
from tests.conftest import resolved

WIDTH = 6
WORDS = ("experiment=tiny", "train.images=480", "train.batch=12", "train.lr=1e-2",
         "train.warmup_images=0", "train.ema_halflife_images=0", "train.precision=fp32",
         "runtime.log_images=12", "runtime.checkpoint_images=60", "runtime.device=cpu")  # fmt: skip


class Pairs(NamedTuple):
    """Inputs and targets, (B,WIDTH) float32."""

    x: Tensor
    y: Tensor


class Vectors:
    """Learns y = |x| rolled by one place, on vectors x that only their position names."""

    num_items, most_items, unit = 10**6, 64, "vectors"

    def check(self) -> None:
        """There is no file that could have changed."""

    def place(self, device: torch.device, announce: bool) -> None:
        self.device = device

    def read_ahead(self, num_positions: int) -> None:
        """Nothing is read."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, WIDTH))

    def batch(self, positions: np.ndarray) -> Pairs:
        x = draws.normal(7, draws.TRAIN_NOISE, torch.from_numpy(positions), (WIDTH,))
        return Pairs(x.to(self.device), x.abs().roll(1, dims=1).to(self.device))

    def loss(self, model: nn.Module, batch: Pairs) -> Tensor:
        return nn.functional.mse_loss(model(batch.x), batch.y)

    def zeros(self, num: int, device: torch.device) -> Pairs:
        return Pairs(*torch.zeros(2, num, WIDTH, device=device))

    def blocks(self) -> tuple[type[nn.Module], ...]:
        return (nn.Linear,)

    def after_step(self, net: nn.Module) -> None:
        """The weights stay as the optimiser leaves them."""

    def locate(self, positions: np.ndarray) -> str:
        return f"vectors {positions[0]} to {positions[-1]}"

    def about(self) -> dict[str, Any]:
        return {"sha256": "vectors 7"}


def main(out: str, *words: str) -> None:
    """Train into the folder `out`."""
    work(Job(resolved(*WORDS, *words), Vectors(), Path(out), Path(out, "scratch")))


if __name__ == "__main__":
    main(*sys.argv[1:])
