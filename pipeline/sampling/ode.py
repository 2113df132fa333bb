"""The base of solvers of ODEs: the velocity that they call, and the solution that they return.

They are pure functions that carry x along time, from 0 (noise) to 1 (data). A velocity is called as
`velocity(x, t, rows)` with the state x (B, C, H, W), the times t (B,) in x's dtype and `rows` (B,)
int64, the batch rows that are being evaluated, by which the caller picks labels; it returns dx/dt
in x's shape and dtype. The caller turns gradients off: sample under `torch.inference_mode()`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


class Solution(NamedTuple):
    """The state at the last time and what it cost."""

    # Of each sample
    x: Tensor  # (B, C, H, W)
    evaluations: Tensor  # (B,) int64, velocity evaluations of each sample


def filled(x: Tensor, t: float) -> Tensor:
    """The time t for every row of x, (B,), in x's dtype."""
    return torch.full((len(x),), t, dtype=x.dtype, device=x.device)


def all_rows(x: Tensor) -> Tensor:
    """0 to B-1, int64, on x's device."""
    return torch.arange(len(x), device=x.device)


def combine(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Weighted sum of the slopes, elementwise and in order; zero weights are left out."""
    terms = [w * slope for w, slope in zip(weights, slopes, strict=True) if w]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
