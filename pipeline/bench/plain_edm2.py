"""The EDM2 network written plainly: what `edm2` is measured against.

It computes what pipeline.networks.edm2 computes, as the paper's formulas stand: each layer divides
its weight by its magnitude and writes it back in every forward pass of the training, then divides
once more for the gradient; the matrix of attention is written out; sums, scalings and the bound are
operations of their own on all pixels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks import edm2, magnitude


def over_magnitude(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """`x` over 1e-4 + the root of its mean square along `dims` (eq. 30)."""
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return x / (1e-4 + norm * math.sqrt(norm.numel() / x.numel()))


def sum_of(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b over the root of the sum of both squares (eq. 88)."""
    return ((1 - share) * a + share * b) / math.sqrt((1 - share) ** 2 + share**2)


class PlainLayer(magnitude.Scaled):
    """The weight of a layer, written back with magnitude 1 in each forward pass of a training."""

    def scaled(self, gain: Tensor | float) -> Tensor:
        """As that of Scaled."""
        dims = tuple(range(1, self.weight.dim()))
        if self.training:
            with torch.no_grad():
                self.weight.copy_(over_magnitude(self.weight, dims))
        return over_magnitude(self.weight, dims) * (gain / math.sqrt(self.fan_in))


class PlainLinear(PlainLayer, magnitude.Linear):
    """A linear layer."""


class PlainConv(PlainLayer, magnitude.Conv):
    """A convolution."""


class PlainAttention(edm2.Attention):
    """The same attention, with the matrix of its weights written out."""

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        b, c, h, w = x.shape
        parts = self.qkv(x).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = over_magnitude(parts, (3,)).unbind(1)
        weights = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(q.shape[2]), -1)
        mixed = torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(b, c, h, w)
        return sum_of(x, self.proj(mixed), edm2.ATTENTION)


class PlainBlock(edm2.Block):
    """The same block, each of its formulas an operation."""

    def forward(self, x: Tensor, embedding: Tensor, keys: Tensor | None = None) -> Tensor:
        """x (B,cin,H,W), embedding (B,E), dropout's keys (B,2) -> (B,cout,H',W')."""
        # Size and width
        if self.resample is not None:
            x = F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2)
        if self.encodes:
            x = over_magnitude(x if self.skip is None else self.skip(x), (1,))
        # The branch
        y = self.conv1(F.silu(x) / 0.596)
        y = y * (self.embed(embedding, self.gain) + 1)[:, :, None, None]
        y = self.conv2(self.dropout(F.silu(y) / 0.596, keys))
        # Both together
        if not self.encodes and self.skip is not None:
            x = self.skip(x)
        x = sum_of(x, y, edm2.RESIDUAL)
        return (x if self.attention is None else self.attention(x)).clamp(-256, 256)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    magnitude.Linear: PlainLinear,
    magnitude.Conv: PlainConv,
    edm2.Attention: PlainAttention,
    edm2.Block: PlainBlock,
}


def make_plain(net: nn.Module) -> None:
    """Have all layers of a network compute plainly; its weights stay."""
    for module in net.modules():
        if plain := PLAIN.get(type(module)):
            module.__class__ = plain
