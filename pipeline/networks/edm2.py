"""The magnitude-preserving network of EDM2 (Karras et al. 2024, arXiv 2312.02696, config G).

Written from the paper's formulas. It denoises: D(z; sigma) is the image that it sees in z = image +
sigma noise. In flow matching's time t = 1 / (1 + sigma) the state is x = t z, and the velocity is
(D(x / t) - x) / (1 - t). Shapes: B images, C channels, H x W pixels; E, the width of the widest
level, is that of the embedding of noise level and class.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compute import execution
from pipeline.config.model_keys import EDM2Keys
from pipeline.networks.dropout import Dropout, numbered
from pipeline.networks.magnitude import (
    SILU_MAGNITUDE,
    Conv,
    Linear,
    NoiseFeatures,
    blend,
    blended,
    joined,
    normalise_weights,
    normalised,
    silu,
)

# Weights of the second part of a sum
RESIDUAL, ATTENTION, LABEL = 0.3, 0.3, 0.5
LARGEST = 256.0  # value behind a block
NEAREST = 1e-4  # the network sees no time nearer to 0 and 1, where ln sigma has no bounds


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, with queries, keys and values of magnitude 1."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.qkv = Conv(channels, 3 * channels, 1)  # all queries, then keys, then values
        self.proj = Conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        # Heads beside each other
        b, c, h, w = x.shape
        q, k, v = (
            normalised(part.reshape(b, self.heads, c // self.heads, h * w), 2).transpose(2, 3)
            for part in self.qkv(x).chunk(3, dim=1)
        )
        # Mixed over the pixels
        mixed = F.scaled_dot_product_attention(q, k, v)
        kept, added = blend(ATTENTION)
        y = self.proj(mixed.transpose(2, 3).reshape(b, c, h, w), added)
        return torch.add(y, x, alpha=kept)


class Block(nn.Module):
    """SiLU-convolution twice with the embedding between them, blended with the input.

    An encoder's block changes the width first and normalises each pixel; a decoder's block changes
    the width of its input beside the branch.
    """

    def __init__(
        self, cin: int, cout: int, width: int, model: EDM2Keys, *,
        encodes: bool, attention: bool = False, resample: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encodes, self.resample = encodes, resample
        # The branch
        self.conv1 = Conv(cout if encodes else cin, cout, 3)
        self.embed = Linear(width, cout)
        self.gain = nn.Parameter(torch.zeros(1))  # of the embedding
        self.dropout = Dropout(model.dropout)
        self.conv2 = Conv(cout, cout, 3)
        # Beside and behind it
        self.skip = None if cin == cout else Conv(cin, cout, 1)
        self.attention = Attention(cout, model.head_channels) if attention else None

    def forward(self, x: Tensor, embedding: Tensor, keys: Tensor | None = None) -> Tensor:
        """x (B,cin,H,W), embedding (B,E), dropout's keys (B,2) -> (B,cout,H',W')."""
        # Size and width
        if self.resample is not None:
            x = F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2)
        if self.encodes:
            x = normalised(x if self.skip is None else self.skip(x), 1)
        kept, added = blend(RESIDUAL)
        y = self._branch(x, embedding, keys, added)
        if not self.encodes and self.skip is not None:
            x = self.skip(x)

        # Both together
        x = torch.add(y, x, alpha=kept)
        if self.attention is not None:
            x = self.attention(x)
        return F.hardtanh(x, -LARGEST, LARGEST)  # clamp's values, and one pass backward

    def _branch(self, x: Tensor, embedding: Tensor, keys: Tensor | None, gain: float) -> Tensor:
        """The branch times `gain`; constants multiply weights, which are fewer than pixels."""
        y = self.conv1(F.silu(x), 1 / SILU_MAGNITUDE)
        scale = (1 + self.embed(embedding, self.gain)).to(y.dtype)
        y = F.silu(y * scale[:, :, None, None])
        return self.conv2(self.dropout(y, keys), gain / SILU_MAGNITUDE)


class EDM2(nn.Module):
    """Velocity v(x, t, class): (B,3,H,W), (B,), (B,) -> (B,3,H,W).

    `num_classes` classes have labels 0 … num_classes-1; label num_classes means "no class".
    A model that is not class-conditional ignores the labels.
    """

    channels_last_on_cpu = True  # convolutions are faster, and no GroupNorm is slower

    def __init__(self, model: EDM2Keys, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        widths = [model.channels * m for m in model.channel_mult]
        self.width = max(widths)

        # Noise level and class
        self.noise_features = NoiseFeatures(widths[0])
        self.noise_embedding = Linear(widths[0], self.width)
        conditional = model.class_conditional
        self.label_embedding = Linear(num_classes, self.width) if conditional else None
        self.uncertainty_features = NoiseFeatures(model.uncertainty_channels)
        self.uncertainty = Linear(model.uncertainty_channels, 1)

        # Encoder, middle and decoder
        self.stem = Conv(4, widths[0], 3)  # colours, and a channel of ones instead of a bias
        skips = self._build_encoder(widths)
        self.middle = nn.ModuleList(
            self._block(widths[-1], widths[-1], encodes=False, attention=attention)
            for attention in (True, False)
        )
        self._build_decoder(widths, skips)

        # Back to colours
        self.out_conv = Conv(widths[0], 3, 3)
        self.out_gain = nn.Parameter(torch.zeros(1))
        numbered(self)
        normalise_weights(self)

    def _build_encoder(self, widths: list[int]) -> list[int]:
        """Fill `encoder`; returns the channels of every skip connection, the stem's first."""
        self.encoder = nn.ModuleList()
        channels = widths[0]
        skips = [channels]
        for level, width in enumerate(widths):
            if level > 0:
                self.encoder.append(self._block(channels, channels, encodes=True, resample="down"))
                skips.append(channels)
            for _ in range(self.model.blocks):
                attention = 2**level in self.model.attention_at
                self.encoder.append(self._block(channels, width, encodes=True, attention=attention))
                channels = width
                skips.append(channels)
        return skips

    def _build_decoder(self, widths: list[int], skips: list[int]) -> None:
        """Fill `decoder`; consumes `skips` from its end."""
        self.decoder = nn.ModuleList()
        channels = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.decoder.append(self._block(channels, channels, encodes=False, resample="up"))
            for _ in range(self.model.blocks + 1):
                cin, attention = channels + skips.pop(), 2**level in self.model.attention_at
                self.decoder.append(self._block(cin, width, encodes=False, attention=attention))
                channels = width

    def _block(
        self, cin: int, cout: int, *,
        encodes: bool, attention: bool = False, resample: str | None = None,
    ) -> Block:  # fmt: skip
        return Block(
            cin, cout, self.width, self.model,
            encodes=encodes, attention=attention, resample=resample,
        )  # fmt: skip

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor,
        keys: Tensor | None = None,
        with_uncertainty: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Velocity (B,3,H,W) of images x (B,3,H,W) at times t (B,) in [0,1]; labels (B,) int64.

        `keys` (B,2) int32: the images' random words for dropout in training. `with_uncertainty`:
        also u (B,), the logarithm of the squared error that is to be expected of the denoiser,
        times its weight; learned by train.weighting=denoising.
        """
        # D = c_skip z + c_out F(c_in z), in terms of x and t
        noise_level = -torch.logit(t.float(), NEAREST) / 4  # ln(sigma) / 4
        data, time = self.model.sigma_data, t.float()[:, None, None, None]
        spread = ((1 - time).square() + (data * time).square()).sqrt()  # of x
        raw = self.raw(x / spread, noise_level, labels, keys)
        velocity = x * ((data**2 * time - (1 - time)) / spread.square()) + raw * (data / spread)
        if not with_uncertainty:
            return velocity

        # Used in training only
        with execution.full_precision(x.device):
            return velocity, self.uncertainty(self.uncertainty_features(noise_level))[:, 0]

    def raw(
        self, x: Tensor, noise_level: Tensor, labels: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Output of the layers, (B,3,H,W) float32, for x of magnitude 1 at ln(sigma) / 4 (B,)."""
        # Down, with skips
        embedding = self._embedding(noise_level, labels)
        h = self.stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for block in self.encoder:
            h = block(h, embedding, keys)
            skips.append(h)

        # Through the middle
        for block in self.middle:
            h = block(h, embedding, keys)
        # Up, joined with skips
        for block in self.decoder:
            h = block(h if block.resample else joined(h, skips.pop()), embedding, keys)
        return self.out_conv(h, self.out_gain).float()

    def _embedding(self, noise_level: Tensor, labels: Tensor) -> Tensor:
        """(B,E) of noise levels (B,) and labels (B,), float32 also under autocast."""
        with execution.full_precision(noise_level.device):
            embedding = self.noise_embedding(self.noise_features(noise_level))
            if self.label_embedding is not None:
                classes = torch.arange(self.num_classes, device=labels.device)
                hot = (labels[:, None] == classes).float() * math.sqrt(self.num_classes)
                embedding = blended(embedding, self.label_embedding(hot), LABEL)
            return silu(embedding)
