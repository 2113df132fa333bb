"""How the times of a training step are spread over [0,1]: pure functions of uniform draws."""

import torch
from torch import Tensor

# Mean and deviation that each kind was published with: of logit t, of ln sigma.
PUBLISHED = {"logit_normal": (0.0, 1.0), "edm_skew": (-1.2, 1.2)}
EARLIEST = 1e-4  # of edm_skew, whose sigma has no upper bound
LATEST = 1 - 2**-24  # of logit_normal: the last float32 below 1, where masks open infinitely fast


def sample_times(kind: str, uniform: Tensor, mean: float | None, std: float | None) -> Tensor:
    """Times (B,) float32 in [0,1] (0 noise, 1 data) of draws `uniform` (B,) in (0,1).

    uniform: the draws themselves.
    logit_normal: logit t is normal (Esser et al. 2024, eq. 19; their t is our 1 - t, so that their
    location m is `mean` = -m); not above LATEST.
    edm_skew: ln sigma is normal; sigma = (1 - t) / t is the ratio of noise to data (Karras
    et al. 2022, table 1: training), so t = 1 / (1 + sigma); not below EARLIEST.
    `mean` and `std` None mean those of PUBLISHED; uniform has none. The normal draws are the
    inverse distribution of the uniform ones, in float64: alike on every device.
    """
    # Nothing to shape
    if kind == "uniform":
        return uniform

    # Published unless given
    published_mean, published_std = PUBLISHED[kind]
    mean = published_mean if mean is None else mean
    std = published_std if std is None else std

    # From normal to time
    value = mean + std * torch.special.ndtri(uniform.double())
    if kind == "logit_normal":
        return torch.sigmoid(value).clamp(max=LATEST).float()
    return (1.0 / (1.0 + value.exp())).clamp(EARLIEST, 1.0).float()
