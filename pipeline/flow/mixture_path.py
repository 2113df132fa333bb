"""The mixture path of discrete flow matching (Gat et al. 2024, arXiv 2407.15595): pure functions.

At time t each value of an image is its own with probability kappa = t^n, and the mask otherwise,
independently of all others: time 0 is all masks, time 1 the image.
Shapes: tokens (…) int64, logits (…,V), times broadcast with tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def masked(x1: Tensor, uniform: Tensor, t: Tensor, exponent: float, mask: int) -> Tensor:
    """x_t of tokens x1: `mask` if `uniform` in (0,1) is below 1 - t^exponent, else x1."""
    return torch.where(uniform < 1 - t**exponent, mask, x1)


def speed(t: Tensor, exponent: float) -> Tensor:
    """kappa' / (1 - kappa) for kappa = t^exponent: the rate at which a mask opens at time t < 1.

    (Gat et al. 2024, eq. 24 without its bracket.)
    """
    return exponent * t ** (exponent - 1) / (1 - t**exponent)


def cross_entropy(logits: Tensor, x1: Tensor) -> Tensor:
    """Mean of -log p(x1 | x_t) over all places, masked or not: a float32 scalar."""
    return F.cross_entropy(logits.float().flatten(0, -2), x1.flatten())


def generalised_kl(logits: Tensor, x1: Tensor, x_t: Tensor, t: Tensor, exponent: float) -> Tensor:
    """The generalised Kullback-Leibler divergence of the jump rates: a float32 scalar.

    The mean over all places of -speed (p(x_t) - [x_t = x1] + (1 - [x_t = x1]) log p(x1)), with p
    the prediction of x1 from x_t: a bound of the log-likelihood of x1 up to a constant (Shaul
    et al. 2024, arXiv 2412.03487). At t = 1 the speed is infinite, so times lie below.
    """
    log_p = logits.float().log_softmax(dim=-1)
    stays = log_p.gather(-1, x_t.unsqueeze(-1)).squeeze(-1).exp()
    right = log_p.gather(-1, x1.unsqueeze(-1)).squeeze(-1)
    is_open = (x_t == x1).float()
    return -(speed(t, exponent) * (stays - is_open + (1 - is_open) * right)).mean()
