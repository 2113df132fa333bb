"""The network of the Large Concept Model: sentence vectors of a document -> the next ones.

A decoder of pre-norm layers (LCM team 2024, "Large Concept Models: Language Modeling in a Sentence
Representation Space", section 2.3.1) between two linear maps, which takes vectors instead of
tokens. What a channel of a vector is worth differs, so the network sees them normalised.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.concept.normaliser import Normaliser
from pipeline.config.model_keys import DecoderKeys, LCMKeys
from pipeline.networks.dropout import Dropout, numbered

EPSILON = 1e-5  # of the norms
THETA = 10_000.0  # base of the rotations' wavelengths
POSITION_STD = 0.006  # of learned positions at the start


class Decoder(nn.Module):
    """Reads a document's sentence vectors: a state at each, of those up to it."""

    # Parts of the normaliser, which are saved with the weights
    center: Tensor
    scale: Tensor

    def __init__(self, keys: DecoderKeys, normaliser: Normaliser, max_sentences: int) -> None:
        super().__init__()
        self.dimension, width = len(normaliser.center), keys.channels
        self.register_buffer("center", torch.tensor(normaliser.center.tolist()))
        self.register_buffer("scale", torch.tensor(normaliser.scale.tolist()))
        self.input = nn.Linear(self.dimension, width)
        self.positions: nn.Parameter | None = None
        if keys.positions == "learned":
            self.positions = nn.Parameter(torch.randn(max_sentences, width) * POSITION_STD)
        self.layers = nn.ModuleList(Layer(keys) for _ in range(keys.layers))
        self.norm = norm(keys)
        self.final_dropout = SentenceDropout(keys.final_dropout)

    def states(self, normalised: Tensor, keys: Tensor | None) -> Tensor:
        """Normalised vectors (B,T,D) -> states (B,T,C).

        Padding comes after a document's sentences, so that no sentence sees it: each sees those up
        to itself alone. `keys` (B,2) int32 are the documents' random words for dropout.
        """
        x = self.input(normalised).float()  # the stream stays float32 under autocast
        if self.positions is not None:
            x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, keys)
        states: Tensor = self.final_dropout(self.norm(x), keys)
        return states

    def normalise(self, vectors: Tensor) -> Tensor:
        """Each dimension with median 0 and scale 1."""
        return (vectors - self.center) / self.scale

    def denormalise(self, vectors: Tensor) -> Tensor:
        """The inverse of `normalise`: predictions as vectors of the encoder."""
        return vectors * self.scale + self.center


class LCM(Decoder):
    """Predicts the vector after each sentence of a document from those up to it."""

    def __init__(self, keys: LCMKeys, normaliser: Normaliser, max_sentences: int) -> None:
        super().__init__(keys, normaliser, max_sentences)
        self.output = nn.Linear(keys.channels, self.dimension)
        numbered(self)

    def forward(self, vectors: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raw vectors (B,T,D) float32 -> predictions (B,T,D), normalised, and the normalised input.

        The prediction at t is of the vector at t+1. `keys`: see `states`.
        """
        normalised = self.normalise(vectors)
        return self.output(self.states(normalised, keys)).float(), normalised


class Layer(nn.Module):
    """Self-attention and an MLP, each after a norm and added to the stream."""

    def __init__(self, keys: DecoderKeys) -> None:
        super().__init__()
        self.attention_norm = norm(keys)
        self.attention = Attention(keys)
        self.attention_dropout = SentenceDropout(keys.dropout)
        self.mlp_norm = norm(keys)
        self.mlp = SwiGLU(keys) if keys.mlp == "swiglu" else ReLU(keys)
        self.mlp_dropout = SentenceDropout(keys.dropout)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """(B,T,C) float32 -> the same shape."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x)), keys)
        return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)), keys)


class Attention(nn.Module):
    """Causal attention with several heads, by rotated queries and keys if positions are such."""

    def __init__(self, keys: DecoderKeys) -> None:
        super().__init__()
        self.heads, self.rotates = keys.heads, keys.positions == "rope"
        # Queries, keys and values as thirds of one map: Glorot's gain for its shape
        self.query, self.key, self.value = (projection(keys, math.sqrt(0.5)) for _ in range(3))
        self.output = projection(keys, 1.0, keys.output_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,C) -> the same shape; the value at t depends on those up to t."""
        batch, length, width = x.shape
        shape = batch, length, self.heads, width // self.heads
        query, key, value = (
            project(x).view(shape).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        if self.rotates:
            query, key = rotated(query), rotated(key)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return output


class SwiGLU(nn.Module):
    """An MLP with a gate (Shazeer 2020)."""

    def __init__(self, keys: DecoderKeys) -> None:
        super().__init__()
        self.gate = nn.Linear(keys.channels, keys.inner_channels)
        self.inner = nn.Linear(keys.channels, keys.inner_channels)
        self.output = nn.Linear(keys.inner_channels, keys.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,C) -> the same shape."""
        output: Tensor = self.output(F.silu(self.gate(x)) * self.inner(x))
        return output


class ReLU(nn.Module):
    """An MLP with one hidden layer."""

    def __init__(self, keys: DecoderKeys) -> None:
        super().__init__()
        self.inner = nn.Linear(keys.channels, keys.inner_channels)
        self.output = nn.Linear(keys.inner_channels, keys.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,C) -> the same shape."""
        output: Tensor = self.output(F.relu(self.inner(x)))
        return output


class SentenceDropout(Dropout):
    """Dropout on (B,T,C) whose masks do not depend on the padding."""

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """(B,T,C) -> the same shape; see networks/dropout.py."""
        columns = x.transpose(1, 2).unsqueeze(3)  # places count the sentences first
        return super().forward(columns, keys).squeeze(3).transpose(1, 2)


def norm(keys: DecoderKeys) -> nn.Module:
    """The norm of a model: RMSNorm (Zhang & Sennrich 2019), or LayerNorm."""
    kind = nn.RMSNorm if keys.norm == "rms" else nn.LayerNorm
    return kind(keys.channels, eps=EPSILON)


def projection(keys: DecoderKeys, gain: float, bias: bool = True) -> nn.Linear:
    """A map of the stream's width with Glorot's uniform weights times `gain`, and biases of 0."""
    layer = nn.Linear(keys.channels, keys.channels, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def rotated(x: Tensor) -> Tensor:
    """(B,H,T,C) with adjacent channels as planes that turn with the position t, in float32.

    Rotary positions (Su et al. 2021, eq. 34): plane i turns by t * THETA^(-2i/C).
    """
    length, width = x.shape[-2:]
    places = torch.arange(0, width, 2, device=x.device, dtype=torch.float32)
    speeds = THETA ** (-places / width)
    angles = torch.arange(length, device=x.device, dtype=torch.float32)[:, None] * speeds
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
