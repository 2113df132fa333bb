"""All that training knows of what it trains.

A workload turns positions of a run into batches and batches into a loss. The trainer, its
checkpoints, averages, ranks and memory fitting know nothing else of images, text or networks.
"""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn


class Workload(Protocol):
    """The task that is trained: data, network and loss. `Batch` is whatever `batch` returns."""

    @property
    def num_items(self) -> int:
        """Items of an epoch: images, pieces of documents."""

    @property
    def unit(self) -> str:
        """The word for several items."""

    @property
    def most_items(self) -> int:
        """Items that one forward and backward pass takes at most if no GPU can measure it."""

    def check(self) -> None:
        """Raise UserError if the data are not what their record says. Asked on rank 0 alone."""

    def place(self, device: torch.device, announce: bool) -> None:
        """Give batches on `device` from now on; print one line of how if `announce`."""

    def read_ahead(self, num_positions: int) -> None:
        """The next batch lies so many positions after the last: read it meanwhile."""

    def build(self) -> nn.Module:
        """The network on torch's current device, its weights drawn from torch's seed."""

    def batch(self, positions: np.ndarray) -> Any:
        """The batch at positions (B,) int64 of the run: a pure function of (seed, positions)."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss over a batch, a float32 scalar; called under autocast."""

    def zeros(self, num: int, device: torch.device) -> Any:
        """A batch of `num` items of zeros, to measure memory and work with."""

    def blocks(self) -> tuple[type[nn.Module], ...]:
        """Kinds of modules whose weights fsdp2 gathers at a time."""

    def after_step(self, net: nn.Module) -> None:
        """Change the weights after an optimiser step, for networks that want that."""

    def locate(self, positions: np.ndarray) -> str:
        """Place of the items at the positions, for messages: "rows 17, 40 of the pack"."""

    def about(self) -> dict[str, object]:
        """The description of the data in a file of weights, as JSON; `sha256` identifies them."""
