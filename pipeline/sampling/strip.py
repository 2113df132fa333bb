"""The denoising strip: the states of a few images at times on the way out of their noise."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

# Size of the strip
ROWS = 8  # images
COLUMNS = 9  # times, at most


def sections(grid: Tensor, adaptive: bool) -> list[Tensor]:
    """The sampler's grid (N+1,) in at most COLUMNS-1 slices of about equal length, sharing their
    ends.

    An adaptive solver has no grid: it is stopped at equal distances.
    """
    targets = torch.linspace(float(grid[0]), 1, COLUMNS, dtype=torch.float64)
    if adaptive:
        grid = targets
    nearest = (grid - targets[:, None]).abs().argmin(dim=1)
    ends = nearest.unique(sorted=True).tolist()
    return [grid[first : end + 1] for first, end in pairwise(ends)]


def states(
    slices: list[Tensor], solve: Callable[[Tensor, Tensor], Tensor], x: Tensor
) -> Iterator[tuple[float, Tensor]]:
    """Time and state (B,C,H,W) at the ends of all slices, from the first state x on.

    `solve(x, times)` carries x from times[0] to times[-1], as Field.solve does.
    With a fixed grid these are the states of one pass over all of it.
    """
    yield float(slices[0][0]), x
    for times in slices:
        x = solve(x, times)
        yield float(times[-1]), x
