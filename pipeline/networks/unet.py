"""The velocity network: the UNet of ADM (Dhariwal & Nichol 2021, "Diffusion models beat GANs").

Shapes: B images, C channels, H x W pixels; E = 4 * channels is the width of the embedding of time
and class. `encoder`, `middle` and `decoder` run in order; the decoder takes the encoder's outputs
in reverse as skip connections.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.model_keys import UNetBlocks, UNetKeys
from pipeline.networks.dropout import Dropout, numbered

GROUPS = 32  # of every GroupNorm


def zeroed(module: nn.Module) -> nn.Module:
    """`module` with all its parameters set to 0: its branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def time_embedding(t: Tensor, width: int) -> Tensor:
    """(B,) times -> (B, width): cos and sin of t at periods 2 pi … 2 pi 10^4."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Resample(nn.Module):
    """Halve (mean of 2x2, or a strided convolution) or double (nearest) the resolution."""

    def __init__(self, channels: int, up: bool, conv: bool) -> None:
        super().__init__()
        self.up = up
        stride = 1 if up else 2
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1) if conv else None

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """(B,C,H,W) -> (B,C,2H,2W) or (B,C,H/2,W/2); of a block's other arguments none is used."""
        if self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        elif self.conv is None:
            return F.avg_pool2d(x, 2)
        return x if self.conv is None else self.conv(x)


class ResBlock(nn.Module):
    """norm-SiLU-conv twice with the embedding between them, plus a skip; may change resolution."""

    def __init__(
        self, cin: int, cout: int, width: int, model: UNetBlocks, resample: str | None = None
    ) -> None:
        super().__init__()
        # First half
        self.scale_shift = model.scale_shift_norm
        self.norm1 = nn.GroupNorm(GROUPS, cin)
        self.resample = Resample(cin, resample == "up", conv=False) if resample else None
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        # Time and class
        self.embed = nn.Linear(width, 2 * cout if model.scale_shift_norm else cout)
        # Second half
        self.norm2 = nn.GroupNorm(GROUPS, cout)
        self.dropout = Dropout(model.dropout)
        self.conv2 = zeroed(nn.Conv2d(cout, cout, 3, padding=1))
        self.skip = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor, embedding: Tensor, keys: Tensor | None = None) -> Tensor:
        """x (B,cin,H,W), embedding (B,E), dropout's keys (B,2) -> (B,cout,H',W')."""
        # First convolution
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        # Time and class
        offset = self.embed(F.silu(embedding))[:, :, None, None]
        if self.scale_shift:
            scale, shift = offset.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + offset)
        # Second convolution
        return self.skip(x) + self.conv2(self.dropout(F.silu(h), keys))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, as a residual branch."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)  # all queries, then keys, then values
        self.proj = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W); of a block's other arguments none is used."""
        # Heads beside each other
        b, c, h, w = x.shape
        q, k, v = (
            part.reshape(b, self.heads, c // self.heads, h * w).transpose(
                2, 3
            )  # (B,heads,HW,C/heads)
            for part in self.qkv(self.norm(x)).chunk(3, dim=1)
        )
        # Mixed over the pixels
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(mixed.transpose(2, 3).reshape(b, c, h, w))


class Body(nn.Module):
    """Encoder, middle and decoder of an image network, between its first layer and its outputs.

    `num_classes` classes have labels 0 … num_classes-1; label num_classes means "no class".
    A model that is not class-conditional ignores the labels.
    """

    def __init__(self, model: UNetBlocks, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.width = 4 * model.channels
        self.widths = [model.channels * m for m in model.channel_mult]

    def _build_label_embedding(self) -> None:
        conditional = self.model.class_conditional
        self.label_embedding = (
            nn.Embedding(self.num_classes + 1, self.width) if conditional else None
        )

    def _build_body(self, cin: int, cout: int) -> None:
        """Fill encoder, middle and decoder, from `cin` channels, and the layers to `cout`."""
        # Encoder, middle and decoder
        skips = self._build_encoder(cin)
        middle = self.widths[-1]
        self.middle = nn.ModuleList(
            [self._block(middle, middle), self._attention(middle), self._block(middle, middle)]
        )
        self._build_decoder(skips)

        # The outputs
        self.out_norm = nn.GroupNorm(GROUPS, self.widths[0])
        self.out_conv = zeroed(nn.Conv2d(self.widths[0], cout, 3, padding=1))
        numbered(self)

    def _build_encoder(self, channels: int) -> list[int]:
        """Fill `encoder`; returns the channels of every skip, the first layer's first."""
        # One skip per layer
        self.encoder = nn.ModuleList()
        skips = [channels]

        # Level by level
        for level, width in enumerate(self.widths):
            for _ in range(self.model.blocks):
                self.encoder.append(self._stage(channels, width, 2**level))
                channels = width
                skips.append(channels)
            if level < len(self.widths) - 1:
                self.encoder.append(nn.ModuleList([self._resample(channels, "down")]))
                skips.append(channels)
        return skips

    def _build_decoder(self, skips: list[int]) -> None:
        """Fill `decoder`; consumes `skips` from its end."""
        # From the deepest level
        self.decoder = nn.ModuleList()
        channels = self.widths[-1]

        # Skips in reverse order
        for level, width in reversed(list(enumerate(self.widths))):
            for block in range(self.model.blocks + 1):
                stage = self._stage(channels + skips.pop(), width, 2**level)
                channels = width
                if level > 0 and block == self.model.blocks:
                    stage.append(self._resample(channels, "up"))
                self.decoder.append(stage)

    def _stage(self, cin: int, cout: int, factor: int) -> nn.ModuleList:
        stage = nn.ModuleList([self._block(cin, cout)])
        if factor in self.model.attention_at:
            stage.append(self._attention(cout))
        return stage

    def _block(self, cin: int, cout: int, resample: str | None = None) -> ResBlock:
        return ResBlock(cin, cout, self.width, self.model, resample)

    def _resample(self, channels: int, direction: str) -> nn.Module:
        if self.model.residual_updown:
            return self._block(channels, channels, direction)
        return Resample(channels, direction == "up", self.model.conv_resample)

    def _attention(self, channels: int) -> Attention:
        heads = self.model.heads
        if self.model.head_channels is not None:
            heads = channels // self.model.head_channels
        return Attention(channels, heads)

    def through(self, h: Tensor, embedding: Tensor, keys: Tensor | None) -> Tensor:
        """First layer (B,cin,H,W), embedding (B,E), dropout's keys -> outputs (B,cout,H,W)."""
        # Down, with skips
        skips = [h]
        for stage in self.encoder:
            for layer in stage.children():
                h = layer(h, embedding, keys)
            skips.append(h)

        # Through the middle
        for layer in self.middle:
            h = layer(h, embedding, keys)
        # Up, joined with skips
        for stage in self.decoder:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in stage.children():
                h = layer(h, embedding, keys)
        outputs: Tensor = self.out_conv(F.silu(self.out_norm(h)))
        return outputs


class UNet(Body):
    """Velocity v(x, t, class): (B,3,H,W), (B,), (B,) -> (B,3,H,W)."""

    def __init__(self, model: UNetKeys, num_classes: int) -> None:
        super().__init__(model, num_classes)
        # Times and classes
        self.time_scale = model.time_scale
        self.time_mlp = nn.Sequential(
            nn.Linear(model.channels, self.width), nn.SiLU(), nn.Linear(self.width, self.width)
        )
        self._build_label_embedding()
        # From colours and back
        self.stem = nn.Conv2d(3, self.widths[0], 3, padding=1)
        self._build_body(self.widths[0], 3)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Velocity (B,3,H,W) of images x (B,3,H,W) at times t (B,) in [0,1]; labels (B,) int64.

        `keys` (B,2) int32: the images' random words for dropout in training.
        """
        embedding = self.time_mlp(time_embedding(t * self.time_scale, self.model.channels))
        if self.label_embedding is not None:
            embedding = embedding + self.label_embedding(labels)
        return self.through(self.stem(x), embedding, keys)
