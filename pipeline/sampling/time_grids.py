"""The times between which a fixed-grid solver steps, and the state at the first of them.

Time is that of the flow: 0 is noise, 1 the image (see pipeline/flow/probability_path.py).
"""

import torch
from torch import Tensor

from pipeline.config.schema import Sample

SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0  # Karras et al. 2022, table 1


def times(sample: Sample) -> Tensor:
    """The increasing times (N+1,) float64 of the sampler's grid, the last of them 1.

    `sample.steps` steps for uniform, edm and sigma, the listed times for a list. An adaptive solver
    has no grid: for it these are the ends of its interval, 0 and 1.
    """
    if sample.adaptive:
        return torch.tensor([0.0, 1.0], dtype=torch.float64)
    if isinstance(sample.grid, tuple):
        return torch.tensor(sample.grid, dtype=torch.float64)
    if sample.grid in ("edm", "sigma"):
        return edm(sample.steps)
    return torch.linspace(0, 1, sample.steps + 1, dtype=torch.float64)


def edm(steps: int) -> Tensor:
    """Times (steps+1,) float64 from 1/81 to 1 of the noise levels of Karras et al. 2022, eq. 5.

    sigma_i = (sigma_max^(1/rho) + i / (n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i < n
    and sigma_n = 0, with n = steps; a single step starts from sigma_max.
    """
    fraction = torch.arange(steps, dtype=torch.float64) / max(1, steps - 1)
    first, last = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    sigma = torch.cat([(first + fraction * (last - first)) ** RHO, torch.zeros(1)])
    return time_of(sigma)


def time_of(sigma: Tensor) -> Tensor:
    """Flow time of a noise level sigma (standard deviation of the noise over scale of the image).

    x_t = t (x1 + (1 - t) / t x0) has sigma = (1 - t) / t.
    """
    return 1 / (1 + sigma)


def sigma_of(t: Tensor) -> Tensor:
    """The noise level of flow times t in (0,1]: see `time_of`."""
    return (1 - t) / t


def start_state(x0: Tensor, grid: Tensor) -> Tensor:
    """The state at grid[0] that noise x0 (B,C,H,W) starts from: (1 - grid[0]) x0.

    The path of probability_path.interpolate is there if 0, the middle of the pixels' range, stands
    for the unknown image. At t = 1 / (1 + sigma_max) it is sigma_max x0 scaled by t, the start of
    Karras et al. 2022 (algorithm 1). At time 0 it is x0 itself.
    """
    return (1 - float(grid[0])) * x0
