"""Scores of predicted sentence vectors, and of the two predictions that any network must beat.

All vectors are rows, float32 (N,D); a row of `predicted` is of the same row of `target`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 1024  # predictions compared with all targets at a time


@dataclass(frozen=True)
class Ridge:
    """The next vector as a linear function of the one before it: a matrix and two means."""

    matrix: Tensor  # (D,D) float64: what a deviation of the one before adds to the next
    before: Tensor  # (D,) float64, the mean of the vectors before
    after: Tensor  # (D,) float64, the mean of the vectors after them

    def predict(self, before: Tensor) -> Tensor:
        """Predictions (N,D) float32 of what comes after vectors (N,D)."""
        return ((before.double() - self.before) @ self.matrix + self.after).float()


def fit_ridge(before: Tensor, after: Tensor, strength: float) -> Ridge:
    """Ridge regression (Hoerl & Kennard 1970): least squares plus `strength` times the squared
    norm of the matrix, the intercept free. N >= 1 pairs of rows; strength > 0.
    """
    means = before.double().mean(0), after.double().mean(0)
    x, y = before.double() - means[0], after.double() - means[1]
    gram = x.mT @ x + strength * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    return Ridge(torch.linalg.solve(gram, x.mT @ y), *means)


def squared_error(predicted: Tensor, target: Tensor) -> float:
    """The mean squared distance per target, summed over dimensions, as the loss has it."""
    return float((predicted.double() - target.double()).square().sum(1).mean())


def error_of_mean(target: Tensor, mean: Tensor) -> float:
    """The squared error of predicting `mean` (D,), that of the training vectors, for everything."""
    return squared_error(mean.expand_as(target), target)


def l2_distance(predicted: Tensor, target: Tensor) -> Tensor:
    """(N,) float32: the Euclidean distance of each prediction from its target."""
    return torch.linalg.vector_norm(predicted - target, dim=1)


def cosine(predicted: Tensor, target: Tensor) -> float:
    """The mean cosine of the angle between a prediction and its target; 0 of a zero vector."""
    return float(torch.cosine_similarity(predicted.double(), target.double(), dim=1).mean())


def retrieval_accuracy(predicted: Tensor, target: Tensor) -> float:
    """The share of predictions to which no other target is nearer than their own, in [0,1].

    Targets that are equal to one's own do not count as others.
    """
    hits = 0
    for rows, distances, own in _distances(predicted, target):
        nearer = distances < own[:, None]
        nearer[torch.arange(len(own)), rows] = False
        hits += int((~nearer.any(1)).sum())
    return hits / len(target)


def contrastive_accuracy(predicted: Tensor, target: Tensor, document: Tensor) -> Tensor:
    """(N,) float32: the share of other documents' targets that are farther from a prediction than
    its own; 0.5 is what chance gives.

    `document` (N,) int64: of each row; there are at least two.
    """
    shares = []
    for rows, distances, own in _distances(predicted, target):
        others = document[rows, None] != document
        farther = (distances > own[:, None]) & others
        shares.append((farther.sum(1) / others.sum(1)).to(torch.float32))
    return torch.cat(shares)


def _distances(predicted: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some rows at a time: their numbers, their distances from all targets and from their own."""
    every = target.double()
    for rows in torch.arange(len(target), device=target.device).split(ROWS):
        # A difference of squares would lose digits
        mode = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(predicted[rows].double(), every, compute_mode=mode)
        yield rows, distances, distances[torch.arange(len(rows)), rows]
