"""The losses of next-sentence regression and of denoising."""

import torch
from torch import Tensor


def squared_error(predicted: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
    """Squared distances between predictions and the vectors they are of, summed: a scalar.

    `predicted`, `vectors` (B,T,D) float32: the prediction at t is of the vector at t+1. `lengths`
    (B,) int64 sentences of each document, of which all but the first are targets (LCM team 2024,
    section 2.3.1).
    """
    distances = (predicted[:, :-1] - vectors[:, 1:]).square().sum(dim=-1)
    return torch.where(targets(lengths, vectors.shape[1])[:, 1:], distances, 0.0).sum()


def denoising_error(estimates: Tensor, true: Tensor, lengths: Tensor) -> Tensor:
    """Squared distances between estimates and vectors without noise, summed: a scalar.

    `estimates`, `true` (B,T,D) float32; `lengths` (B,) int64 sentences of each document, which all
    count, the first too (LCM team 2024, section 2.3.2).
    """
    places = torch.arange(true.shape[1], device=true.device)
    distances = (estimates - true).square().sum(dim=-1)
    return torch.where(places < lengths[:, None], distances, 0.0).sum()


def targets(lengths: Tensor, longest: int) -> Tensor:
    """(B,longest) bool: the sentences of documents of these lengths (B,), except each first."""
    places = torch.arange(longest, device=lengths.device)
    return (places < lengths[:, None]) & (places > 0)
