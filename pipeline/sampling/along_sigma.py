"""Fixed-grid solvers whose steps go along the noise level sigma instead of the time.

The ODE of Karras et al. 2022 (eq. 1 with sigma as its time) is that of the flow in other variables:
y = x / t and sigma = (1 - t) / t turn the velocity v into dy/dsigma = x - t v. Straight lines there
are curves here, so the same solver at the same noise levels makes other images.
"""

from itertools import pairwise

import torch
from torch import Tensor

from pipeline.sampling import solvers
from pipeline.sampling.multistep import Past
from pipeline.sampling.ode import Velocity
from pipeline.sampling.time_grids import sigma_of, time_of


def solve(
    name: str, velocity: Velocity, x: Tensor, times: Tensor, past: Past | None = None
) -> Tensor:
    """Carry x (B,C,H,W) from times[0] > 0 to times[-1] with the fixed-grid solver `name`.

    `times` (N+1,) float64 increase. The step to time 1, where sigma is 0, is always Euler's, which
    ends at the image that the network expects: with `heun` this is algorithm 1 of Karras et al.
    2022, of 2 N - 1 evaluations. `past` are the slopes of a multistep solver along sigma.
    Raises KeyError for another solver.
    """

    def slope(y: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """dy/dsigma, in y's shape and dtype."""
        t = time_of(sigma)
        wide_t = t.view(-1, *[1] * (y.dim() - 1))
        state = wide_t * y
        return state - wide_t * velocity(state, t, rows)

    for ends in pairwise(times.tolist()):
        method = "euler" if ends[1] == 1 else name
        levels = sigma_of(torch.tensor(ends, dtype=torch.float64))
        x = ends[1] * solvers.on_grid(method, slope, x / ends[0], levels, past).x
    return x
