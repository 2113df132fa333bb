"""The Monge Inception distance: how far features must be moved, seen along random directions.

Monge Inception Distance (MIND), arXiv 2605.06797. torch-fidelity has it from 0.5 on, which is not
released: written here, with its constants and its random numbers.
"""

import torch
from torch import Tensor

DIRECTIONS = 1000
AT_A_TIME = 50  # directions: with 50,000 images the projections of a set take 10 MB


def monge_distance(
    features_a: Tensor, features_b: Tensor, seed: int, directions: int = DIRECTIONS
) -> float:
    """MIND of features (N,D) and (M,D): 3 D times the squared sliced Wasserstein-2 distance.

    The mean over random unit directions of the mean squared difference of the sorted projections.
    The larger set is cut to the size of the smaller by a random permutation.
    """
    # Random numbers of a CPU
    generator = torch.Generator().manual_seed(seed)
    features_a, features_b = equal_numbers(features_a, features_b, generator)
    width = features_a.shape[1]
    vectors = torch.randn(directions, width, generator=generator)
    units = (vectors / vectors.norm(dim=1, keepdim=True)).to(features_a)

    # Optimal transport along each direction
    total = torch.zeros((), dtype=torch.float64, device=features_a.device)
    for part in units.split(AT_A_TIME):
        sorted_a, sorted_b = ((part @ x.T).sort(dim=1).values for x in (features_a, features_b))
        total += (sorted_a - sorted_b).square().mean(dim=1).double().sum()
    return 3 * width * float(total) / directions


def equal_numbers(
    features_a: Tensor, features_b: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Both sets, the larger one as random rows of it, as many as the smaller has."""
    num, larger = sorted((len(features_a), len(features_b)))
    if num == larger:
        return features_a, features_b
    rows = torch.randperm(larger, generator=generator)[:num].to(features_a.device)
    if len(features_a) > num:
        return features_a[rows], features_b
    return features_a, features_b[rows]
