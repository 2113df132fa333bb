"""Solvers of ODEs by their names, and those that need no other step; see pipeline/sampling/ode.py.

A new solver is a function, a row of FIXED_GRID, MULTISTEP or ADAPTIVE, and its name in
config/schema.py.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.sampling.dopri5 import dopri5
from pipeline.sampling.multistep import Past, adams_bashforth
from pipeline.sampling.ode import Solution, Velocity, all_rows, filled


def euler(velocity: Velocity, x: Tensor, times: Tensor) -> Solution:
    """Euler's method (order 1): x + h v(x, t).

    `times` (N+1,) is the increasing grid, best in float64; one evaluation per step.
    """
    grid, rows = times.tolist(), all_rows(x)
    for t, t_next in pairwise(grid):
        x = x + (t_next - t) * velocity(x, filled(x, t), rows)
    return Solution(x, torch.full_like(rows, len(grid) - 1))


def midpoint(velocity: Velocity, x: Tensor, times: Tensor) -> Solution:
    """The explicit midpoint rule of Runge 1895 (order 2): a full step with the slope at half of it.

    `times` (N+1,) is the increasing grid, best in float64; two evaluations per step.
    """
    grid, rows = times.tolist(), all_rows(x)
    for t, t_next in pairwise(grid):
        h = t_next - t
        half = x + h / 2 * velocity(x, filled(x, t), rows)
        x = x + h * velocity(half, filled(x, t + h / 2), rows)
    return Solution(x, torch.full_like(rows, 2 * (len(grid) - 1)))


def heun(velocity: Velocity, x: Tensor, times: Tensor) -> Solution:
    """Heun's method, the explicit trapezoid rule (order 2; Heun 1900): the mean end slope.

    `times` (N+1,) is the increasing grid, best in float64; two evaluations per step, the last too.
    """
    grid, rows = times.tolist(), all_rows(x)
    for t, t_next in pairwise(grid):
        h = t_next - t
        slope = velocity(x, filled(x, t), rows)
        end_slope = velocity(x + h * slope, filled(x, t_next), rows)
        x = x + h / 2 * (slope + end_slope)
    return Solution(x, torch.full_like(rows, 2 * (len(grid) - 1)))


def rk4(velocity: Velocity, x: Tensor, times: Tensor) -> Solution:
    """The classical Runge-Kutta method of Kutta 1901 (order 4).

    `times` (N+1,) is the increasing grid, best in float64; four evaluations per step.
    """
    # Equal steps for all
    grid, rows = times.tolist(), all_rows(x)
    for t, t_next in pairwise(grid):
        h, middle = t_next - t, filled(x, (t + t_next) / 2)
        slope = velocity(x, filled(x, t), rows)
        second = velocity(x + h / 2 * slope, middle, rows)
        third = velocity(x + h / 2 * second, middle, rows)
        end_slope = velocity(x + h * third, filled(x, t_next), rows)
        x = x + h / 6 * (slope + 2 * (second + third) + end_slope)
    return Solution(x, torch.full_like(rows, 4 * (len(grid) - 1)))


# Solvers by the names of sample.solver (config/schema.py)
FIXED_GRID = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}
MULTISTEP = {
    "ab2": partial(adams_bashforth, order=2),
    "ab3": partial(adams_bashforth, order=3),
}
ADAPTIVE = {"dopri5": dopri5}


def solve(
    name: str,
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    rtol: float,
    atol: float,
    past: Past | None = None,
) -> Solution:
    """Carry x (B, C, H, W) from times[0] to times[-1] with the solver `name`.

    `times` (N+1,) float64 increase; an adaptive solver uses only the first and the last, and it
    alone uses `rtol` and `atol`. A fixed-grid solver does the same arithmetic over slices of a
    grid, one after the other, as over the whole; a multistep solver does if all slices share one
    list `past`, empty at first, which it alone uses.
    Raises KeyError for another name, ArithmeticError if a step of an adaptive solver underflows.
    """
    if name in ADAPTIVE:
        start, stop = float(times[0]), float(times[-1])
        return ADAPTIVE[name](velocity, x, rtol, atol, start=start, stop=stop)
    return on_grid(name, velocity, x, times, past)


def on_grid(
    name: str, velocity: Velocity, x: Tensor, times: Tensor, past: Past | None = None
) -> Solution:
    """As `solve`, by a solver that follows a grid, which may also decrease."""
    if name in MULTISTEP:
        return MULTISTEP[name](velocity, x, times, past=past)
    return FIXED_GRID[name](velocity, x, times)
