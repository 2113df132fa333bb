"""Flow matching with the conditional optimal-transport path (Lipman et al. 2023): pure functions.

Time runs from 0 (noise x0) to 1 (data x1): x_t = (1 - t) x0 + t x1, target velocity x1 - x0.
Shapes: x0, x1 (B,3,H,W) float32; t (B,) in [0,1].
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t x1 (Lipman et al. 2023, eq. 22 with sigma_min = 0)."""
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * x0 + t * x1


def target_velocity(x0: Tensor, x1: Tensor) -> Tensor:
    """d x_t / dt = x1 - x0 (Lipman et al. 2023, eq. 23 with sigma_min = 0)."""
    return x1 - x0


def loss(velocity: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """Mean squared error of the velocity over all elements of the batch: a float32 scalar."""
    return F.mse_loss(velocity.float(), target_velocity(x0, x1))


def drop_labels(labels: Tensor, uniform: Tensor, rate: float, no_class: int) -> Tensor:
    """Labels (B,) with those whose `uniform` (B,) in (0,1) is below `rate` replaced by `no_class`.

    Per sample, so that every batch holds both kinds (Ho & Salimans 2022).
    """
    return torch.where(uniform < rate, no_class, labels)


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """v_none + guidance (v_class - v_none): classifier-free guidance (Ho & Salimans 2022).

    guidance 1 is the conditional velocity; a scale w in the notation (1 + w) v_class - w v_none
    is guidance = 1 + w.
    """
    return unconditional + guidance * (conditional - unconditional)
