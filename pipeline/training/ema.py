"""Exponential moving average of the weights, with its half-life in images."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A copy of `net` that follows it; `net` itself is never changed."""

    def __init__(self, net: nn.Module, halflife_images: float, rampup: float) -> None:
        """`rampup` bounds the half-life by that share of the images seen; 0 means no bound."""
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.halflife_images = halflife_images
        self.rampup = rampup

    def decay(self, images_seen: int, batch: int) -> float:
        """Weight of the old average after a step of `batch` images (EDM, Karras et al. 2022, B)."""
        halflife = self.halflife_images
        if self.rampup > 0:
            halflife = min(halflife, images_seen * self.rampup)
        return 0.5 ** (batch / max(halflife, 1e-8))

    @torch.no_grad()
    def update(self, net: nn.Module, images_seen: int, batch: int) -> None:
        """Move the average towards `net` after a step that ended at `images_seen` images."""
        averages: list[Tensor] = list(self.net.parameters())
        currents: list[Tensor] = list(net.parameters())
        torch._foreach_lerp_(averages, currents, 1.0 - self.decay(images_seen, batch))
