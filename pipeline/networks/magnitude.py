"""Layers that keep the magnitude of what they carry: Karras et al. 2024 (arXiv 2312.02696).

The magnitude of a tensor is the root of its mean square, 1 for standard normal values. Equation
numbers are those of the paper.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compute import parts

EPSILON = 1e-4  # added to a magnitude before the division by it
SILU_MAGNITUDE = 0.596  # of silu(x) for standard normal x


def inverse_magnitude(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """1 / (EPSILON + the magnitude of `x` along `dims`), of size 1 there, float32."""
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    return 1 / (EPSILON + norm * math.sqrt(norm.numel() / max(1, x.numel())))


def normalised(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """`x` over EPSILON + its magnitude along `dims` (eq. 30), in x's dtype.

    The magnitude is taken in float32.
    """
    return x * inverse_magnitude(x, dims).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU, scaled so that standard normal values keep their magnitude (eq. 81)."""
    return F.silu(x) / SILU_MAGNITUDE


def blended(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b, scaled so that unrelated a, b keep their magnitude (eq. 88)."""
    first, second = blend(share)
    return first * a + second * b


def blend(share: float) -> tuple[float, float]:
    """The factors of a and b in `blended`."""
    length = math.hypot(1 - share, share)
    return (1 - share) / length, share / length


def joined(a: Tensor, b: Tensor) -> Tensor:
    """(B,Ca,H,W), (B,Cb,H,W) -> (B,Ca+Cb,H,W), both with the same weight (eq. 103)."""
    total = a.shape[1] + b.shape[1]
    if a.shape[1] == b.shape[1]:  # both factors are 1
        return torch.cat([a, b], dim=1)
    parts = [part * math.sqrt(total / (2 * part.shape[1])) for part in (a, b)]
    return torch.cat(parts, dim=1)


class Scaled(nn.Module):
    """A weight of standard normal values, used with magnitude 1 / sqrt(fan-in) a unit.

    Its own magnitude has no effect on what the layer computes (eq. 47).
    """

    def __init__(self, cout: int, cin: int, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, *kernel))
        self.fan_in = cin * math.prod(kernel)

    def scaled(self, gain: Tensor | float) -> Tensor:
        """The weight as it is used, float32: magnitude gain / sqrt(fan-in) for each output unit."""
        inverse = inverse_magnitude(self.weight, tuple(range(1, self.weight.dim())))
        return self.weight * (inverse * (gain / math.sqrt(self.fan_in)))


class Linear(Scaled):
    """A linear layer without bias."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cout, cin)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """(B,cin) -> (B,cout), times `gain`."""
        return F.linear(x, self.scaled(gain))


class Conv(Scaled):
    """A convolution without bias that keeps the size of the image; `size` of its kernel is odd."""

    def __init__(self, cin: int, cout: int, size: int) -> None:
        super().__init__(cout, cin, size, size)
        self.padding = size // 2

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """(B,cin,H,W) -> (B,cout,H,W), times `gain`."""
        return F.conv2d(x, self.scaled(gain), padding=self.padding)


class NoiseFeatures(nn.Module):
    """sqrt(2) cos(2 pi (f c + p)) of a number c an image; f normal, p uniform, fixed (eq. 75)."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width))
        self.register_buffer("phases", torch.rand(width))

    def forward(self, c: Tensor) -> Tensor:
        """(B,) -> (B,width) float32."""
        angles = 2 * math.pi * (c.float()[:, None] * self.frequencies + self.phases)
        return math.sqrt(2) * angles.cos()


@torch.no_grad()
def normalise_weights(net: nn.Module) -> None:
    """Set every weight of a Scaled layer to magnitude 1 for each output unit (eq. 66).

    Otherwise the weights grow in training, and the same learning rate turns them less and less.
    A unit lies whole on one rank, so that ranks need not talk.
    """
    for layer in net.modules():
        if isinstance(layer, Scaled):
            rows = parts.local(layer.weight)
            rows.copy_(normalised(rows, tuple(range(1, rows.dim()))))
