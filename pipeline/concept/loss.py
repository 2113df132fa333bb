"""The losses of next-sentence regression and of denoising."""

import torch
from torch import Tensor


def squared_error(
    predicted: Tensor, vectors: Tensor, lengths: Tensor, contexts: Tensor | None = None
) -> Tensor:
    """Squared distances between predictions and the vectors they are of, summed: a scalar.

    `predicted`, `vectors` (B,T,D) float32: the prediction at t is of the vector at t+1. `lengths`
    (B,) int64 sentences of each document, of which all but the first `contexts` (B,) are targets;
    None: all but one (LCM team 2024, section 2.3.1).
    """
    distances = (predicted[:, :-1] - vectors[:, 1:]).square().sum(dim=-1)
    contexts = torch.ones_like(lengths) if contexts is None else contexts
    is_target = targets(lengths, contexts, vectors.shape[1])
    return torch.where(is_target[:, 1:], distances, 0.0).sum()


def denoising_error(
    estimates: Tensor, true: Tensor, lengths: Tensor, contexts: Tensor | None = None
) -> Tensor:
    """Squared distances between estimates and vectors without noise, summed: a scalar.

    `estimates`, `true` (B,T,D) float32; `lengths` (B,) int64 sentences of each document, which all
    count but the first `contexts` (B,); None: all (LCM team 2024, section 2.3.2).
    """
    distances = (estimates - true).square().sum(dim=-1)
    contexts = torch.zeros_like(lengths) if contexts is None else contexts
    return torch.where(targets(lengths, contexts, true.shape[1]), distances, 0.0).sum()


def targets(lengths: Tensor, contexts: Tensor, longest: int) -> Tensor:
    """(B,longest) bool: sentences of documents of these lengths (B,), but the first `contexts`."""
    places = torch.arange(longest, device=lengths.device)
    return (places < lengths[:, None]) & (places >= contexts[:, None])
