"""Tokens of pixels and back: grey levels, or groups of neighbouring ones."""

import torch
from torch import Tensor

from pipeline.config.model_keys import LEVELS


def tokens_of(pixels: Tensor, values: int) -> Tensor:
    """uint8 of any shape -> tokens int64 in 0 … values-1: a token is LEVELS / values levels."""
    return pixels.to(torch.int64) // (LEVELS // values)


def pixels_of(tokens: Tensor, values: int) -> Tensor:
    """Tokens -> uint8, the middle of each one's levels; the mask is grey, the middle of all.

    With 256 values the inverse of `tokens_of`.
    """
    size = LEVELS // values
    levels = torch.where(tokens < values, tokens * size + size // 2, LEVELS // 2)
    return levels.to(torch.uint8)
