"""The loss of next-sentence regression, and two measures of its predictions."""

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


def targets(lengths: Tensor, longest: int) -> Tensor:
    """(B,longest) bool: the sentences of documents of these lengths (B,), except each first."""
    places = torch.arange(longest, device=lengths.device)
    return (places < lengths[:, None]) & (places > 0)


def l2_distance(predicted: Tensor, target: Tensor) -> Tensor:
    """Euclidean distance (...) of vectors (...,D)."""
    return torch.linalg.vector_norm(predicted - target, dim=-1)


def contrastive_accuracy(predicted: Tensor, target: Tensor) -> Tensor:
    """(B,T) float32: the share of the other documents' targets that are farther from a prediction
    than its own.

    `predicted`, `target` (B,T,D) of B >= 2 documents; 0.5 is what chance gives.
    """
    num, length, _ = target.shape
    distances = torch.cdist(
        predicted.flatten(0, 1).double(),
        target.flatten(0, 1).double(),
        compute_mode="donot_use_mm_for_euclid_dist",  # a difference of squares loses digits
    )
    own = distances.diagonal()
    document = torch.arange(num, device=target.device).repeat_interleave(length)
    others = document[:, None] != document
    farther = (distances > own[:, None]) & others
    return (farther.sum(1) / others.sum(1)).to(torch.float32).view(num, length)
