"""The diffusion network of the Large Concept Model: noisy sentence vectors -> those without noise.

Two towers (LCM team 2024, section 2.3.4): a decoder reads the sentences, and a denoiser, which sees
its states of the sentences before, takes the noise from the next one.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.concept.network import (
    Decoder,
    ReLU,
    SentenceDropout,
    SwiGLU,
    norm,
    projection,
)
from pipeline.concept.normaliser import Normaliser
from pipeline.config.model_keys import TwoTowerKeys
from pipeline.networks.dropout import numbered

WAVES = 256  # numbers that describe a noise level
LONGEST = 10_000.0  # of the waves' periods, in units of 2 pi levels
LEVEL_STD = 0.02  # of the weights of the level's embedding at the start
BLOCKS = 3  # of a layer of the denoiser


class TwoTower(Decoder):
    """Predicts each sentence of a document from its noisy vector and the sentences before it."""

    def __init__(self, keys: TwoTowerKeys, normaliser: Normaliser, max_sentences: int) -> None:
        super().__init__(keys, normaliser, max_sentences)
        self.level = LevelEmbedding(keys.channels)
        self.noisy_input = nn.Linear(self.dimension, keys.channels)
        self.denoiser = nn.ModuleList(DenoiserLayer(keys) for _ in range(keys.denoiser_layers))
        self.denoiser_norm = norm(keys)
        self.output = nn.Linear(keys.channels, self.dimension)
        numbered(self)

    def forward(
        self,
        vectors: Tensor,
        noise: tuple[Tensor, Tensor, Tensor],
        levels: Tensor,
        alone: Tensor,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Raw vectors (B,T,D) float32 -> estimates (B,T,D) of them, normalised, and what is true.

        `noise`: signal (B,T), noise (B,T) and normals (B,T,D) by which each vector becomes noisy;
        `levels` (B,T) int64: their noise levels. `alone`, `keys`: see `denoise` and `states`.
        """
        normalised = self.normalise(vectors)
        signal, share, normals = noise
        noisy = signal[..., None] * normalised + share[..., None] * normals
        states = self.before(self.states(normalised, keys))
        return self.denoise(noisy, levels, states, alone, keys), normalised

    @staticmethod
    def before(states: Tensor) -> Tensor:
        """The context (B,T,C) of each sentence: zeros, then the states of the sentences before."""
        return F.pad(states, (0, 0, 1, 0))[:, :-1]

    def denoise(
        self,
        noisy: Tensor,
        levels: Tensor,
        context: Tensor,
        alone: Tensor,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Noisy vectors (B,T,D), normalised, -> estimates (B,T,D) float32 without noise.

        `levels` int64 (B,T), or (1,1) if all have the same; `context` (B,T,C): see `before`;
        `alone` (B,T) bool: sentences that see no context; `keys` (B,2) int32: random words for
        dropout.
        """
        places = torch.arange(noisy.shape[1], device=noisy.device)
        sees = (places <= places[:, None]) & (~alone[..., None] | (places == 0))
        level = self.level(levels)
        x = self.noisy_input(noisy).float()
        for layer in self.denoiser:
            x = layer(x, level, context, sees[:, None], keys)
        estimate: Tensor = self.output(self.denoiser_norm(x)).float()
        return estimate


class LevelEmbedding(nn.Module):
    """A noise level as a vector: waves of it, and a small MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WAVES, channels), nn.Linear(channels, channels)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=LEVEL_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Tensor) -> Tensor:
        """Levels (B,T) int64 -> (B,T,C)."""
        steps = torch.arange(WAVES // 2, device=levels.device, dtype=torch.float32)
        angles = levels.float()[..., None] * torch.exp(-math.log(LONGEST) * steps / (WAVES // 2))
        embedding: Tensor = self.outer(
            F.silu(self.inner(torch.cat([angles.cos(), angles.sin()], -1)))
        )
        return embedding


class DenoiserLayer(nn.Module):
    """Attention to itself and to the context, and an MLP, scaled and gated by the noise level.

    The gates are 0 at the start, so the layer is (adaLN-Zero; Peebles & Xie 2023). A sentence's
    attention to itself alone is a linear map of it: queries and keys would make no difference.
    """

    def __init__(self, keys: TwoTowerKeys) -> None:
        super().__init__()
        self.modulation = nn.Linear(keys.channels, 3 * BLOCKS * keys.channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.norms = nn.ModuleList(norm(keys) for _ in range(BLOCKS))
        self.dropouts = nn.ModuleList(SentenceDropout(keys.dropout) for _ in range(BLOCKS))
        self.own = nn.Sequential(
            projection(keys, math.sqrt(0.5)), projection(keys, 1.0, keys.output_bias)
        )
        self.attention = ContextAttention(keys)
        self.mlp = SwiGLU(keys) if keys.mlp == "swiglu" else ReLU(keys)

    def forward(
        self, x: Tensor, level: Tensor, context: Tensor, sees: Tensor, keys: Tensor | None
    ) -> Tensor:
        """(B,T,C) float32 -> the same shape; `level` (B,T,C), `sees` (B,1,T,T) bool."""
        parts = self.modulation(F.silu(level)).chunk(3 * BLOCKS, dim=-1)
        blocks = (self.own, lambda y: self.attention(y, context, sees), self.mlp)
        for number, block in enumerate(blocks):
            shift, scale, gate = parts[3 * number : 3 * number + 3]
            y = block(self.norms[number](x) * (1 + scale) + shift)
            x = x + gate * self.dropouts[number](y, keys)
        return x


class ContextAttention(nn.Module):
    """Attention with several heads, from sentences to the context."""

    def __init__(self, keys: TwoTowerKeys) -> None:
        super().__init__()
        self.heads = keys.heads
        self.query, self.key, self.value = (projection(keys, math.sqrt(0.5)) for _ in range(3))
        self.output = projection(keys, 1.0, keys.output_bias)

    def forward(self, x: Tensor, context: Tensor, sees: Tensor) -> Tensor:
        """(B,T,C) and a context (B,T,C) -> (B,T,C); `sees` (B,1,T,T) bool: x at t sees these."""
        batch, length, width = x.shape
        shape = batch, length, self.heads, width // self.heads
        query, key, value = (
            project(y).view(shape).transpose(1, 2)
            for project, y in ((self.query, x), (self.key, context), (self.value, context))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return output
