"""Multistep solvers: one evaluation per step, and the slopes of earlier steps beside it."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.sampling.ode import Solution, Velocity, all_rows, combine, filled

Past = list[tuple[float, Tensor]]  # times and slopes (B, C, H, W) of the last steps, oldest first


def adams_bashforth(
    velocity: Velocity, x: Tensor, times: Tensor, order: int, past: Past | None = None
) -> Solution:
    """The explicit Adams method of `order` 2 or 3 (Bashforth & Adams 1883), on any grid.

    A step integrates the polynomial through the slopes of the last `order` times (Hairer, Norsett &
    Wanner 1993, III.5: variable step sizes); the second step has only two. The first is one of the
    midpoint rule, whose error keeps the order of the whole: on trained flows it is worth its second
    evaluation (docs/sampling-and-scoring.md).
    `times` (N+1,) is the monotonic grid, best in float64; one evaluation per step, and one more for
    the first. `past` are the slopes of the steps that led to times[0], brought up to date by this
    call: with one list, calls for slices of a grid do the same arithmetic as one for the whole.
    """
    grid, rows, past = times.tolist(), all_rows(x), [] if past is None else past
    evaluations = len(grid) - 1
    for t, t_next in pairwise(grid):
        # Slopes up to now
        is_first = not past
        past.append((t, velocity(x, filled(x, t), rows)))
        del past[:-order]

        # The step
        if is_first:
            h, slope = t_next - t, past[-1][1]
            x = x + h * velocity(x + h / 2 * slope, filled(x, t + h / 2), rows)
            evaluations += 1
        else:
            weights = step_weights([time for time, _ in past], t_next)
            x = x + combine(weights, [slope for _, slope in past])
    return Solution(x, torch.full_like(rows, evaluations))


def step_weights(times: Sequence[float], t_next: float) -> list[float]:
    """Weights of slopes at `times` for the step from the last of these, all distinct, to `t_next`.

    They integrate each power below len(times) of (t - times[-1]) / (t_next - times[-1]) exactly.
    """
    step = t_next - times[-1]
    nodes = (np.array(times, np.float64) - times[-1]) / step
    integrals = 1 / np.arange(1, len(nodes) + 1)  # of the powers, over one step
    powers = np.vander(nodes, increasing=True).T
    weights: list[float] = (step * np.linalg.solve(powers, integrals)).tolist()
    return weights
